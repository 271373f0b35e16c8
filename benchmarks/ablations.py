"""A config against itself with one choice changed, for several seeds: which choice helps?

    python benchmarks/ablations.py [CONFIG] [--out FOLDER] [--seeds 3] [--jobs 2] [--only NAME ...]

Runs go to FOLDER/<variant>/<seed>; a finished run is read again instead of repeated, so the command can be interrupted.
Writes FOLDER/sweep.json and sweep.html, and prints a Markdown table: mean scaled reward of the first and of the last
fifth of the updates, per agent and seed, and the mean change with Student's interval over the seeds.
"""

from pathlib import Path

import click

from rlhf_marl.cli.sweep import check_failures, shown_sweep
from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.sweeps.grid import plan_arms
from rlhf_marl.sweeps.results import frame

VARIANTS: dict[str, dict] = {
    "default": {},
    "control": {"actor.step_size": 1e-12},  # learns nothing: what the choice of prompts alone does
    "consensus": {"actor.credit": "consensus"},
    "td_q": {"actor.signal": "td_q"},
    "gossip_0": {"topology.gossip_rounds": 0},
}


def table(runs: list) -> str:
    """Markdown: a row per variant and agent."""
    rows = frame(runs)
    seeds = sorted(rows["seed"].unique())
    lines = [
        "| variant | agent | " + " | ".join(f"seed {s}" for s in seeds) + " | mean change [95% interval] |",
        "| --- | --- | " + "--- | " * (len(seeds) + 1),
    ]
    for (variant, _), group in rows.groupby(["arm", "agent"], sort=False):
        pairs = list(zip(group["first_fifth"], group["last_fifth"], strict=True))
        cells = " | ".join(f"{first:+.2f} → {last:+.2f}" for first, last in pairs)
        mean, low, high = over_seeds([last - first for first, last in pairs])
        lines.append(
            f"| {variant} | {group['reward_model'].iloc[0]} | {cells} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablations"), show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2))
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1), help="Runs at once; they share the cores."
)
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="These variants alone.")
def main(config: str, out: Path, seeds: int, jobs: int, only: tuple[str, ...]) -> None:
    """Train all variants of CONFIG and print the table."""
    arms = {name: VARIANTS[name] for name in only or VARIANTS}
    runs = plan_arms(load_yaml(find_data(config, "config")), config, arms, range(seeds), out)
    over = {"variant": list(arms), "seed": list(range(seeds))}
    numbers = shown_sweep(runs, out, config=config, over=over, jobs=jobs)
    check_failures(numbers, out)
    click.echo(table(runs))


if __name__ == "__main__":
    main()
