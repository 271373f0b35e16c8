"""The quickstart against itself with one choice changed, for several seeds: which choice helps?

    python benchmarks/ablations.py [CONFIG] [--out FOLDER] [--seeds 3] [--jobs 2] [--only NAME ...]

Runs go to FOLDER/<variant>/<seed>; a finished run is read again instead of repeated, so the command can be interrupted.
Prints a Markdown table: mean scaled reward of the first and of the last fifth of the updates, per agent and seed, and
the mean change with Student's interval over the seeds.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import click
import numpy as np

from rlhf_marl.api import load_run
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.gridworld.study.measure import interval
from rlhf_marl.runs.metrics import first_and_last_fifth

VARIANTS = {
    "default": [],
    "control": ["--actor.step_size", "1e-12"],  # learns nothing: what the choice of prompts alone does
    "consensus": ["--actor.credit", "consensus"],
    "td_q": ["--actor.signal", "td_q"],
    "gossip_0": ["--topology.gossip_rounds", "0"],
}


def train(config: str, folder: Path, overrides: list[str], threads: int) -> None:
    """One run in a process of its own, unless it is there and finished; an unfinished one goes on."""
    if finished(folder):
        return
    command = [sys.executable, "-m", "rlhf_marl", "train", config, "--run-dir", str(folder), *overrides]
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    subprocess.run(
        [*command, *resume], check=True, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    click.echo(f"finished {folder}", err=True)


def finished(folder: Path) -> bool:
    """Whether all of a run's iterations are there."""
    if not (folder / "critics.safetensors").exists():
        return False
    iterations = load_run(folder).config.iterations
    return read_jsonl(folder / "metrics.jsonl")[-1]["iteration"] == iterations - 1


def table(out: Path, variants: list[str], seeds: int) -> str:
    """Markdown: a row per variant and agent."""
    lines = [
        "| variant | agent | " + " | ".join(f"seed {s}" for s in range(seeds)) + " | mean change [95% interval] |",
        "| --- | --- | " + "--- | " * (seeds + 1),
    ]
    for variant in variants:
        runs = [read_jsonl(out / variant / str(seed) / "metrics.jsonl") for seed in range(seeds)]
        names = sorted({row["agent"]: row["reward_model"] for row in runs[0]}.items())
        for agent, name in names:
            pairs = [
                first_and_last_fifth([row["reward_scaled"] for row in rows if row["agent"] == agent]) for rows in runs
            ]
            changes = [last - first for first, last in pairs]
            cells = " | ".join(f"{first:+.2f} → {last:+.2f}" for first, last in pairs)
            mean, low, high = interval(np.array(changes))
            lines.append(f"| {variant} | {name} | {cells} | {mean:+.2f} [{low:+.2f}, {high:+.2f}] |")
    return "\n".join(lines)


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablations"), show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(2))
@click.option("--jobs", default=2, show_default=True, help="Runs at once; they share the cores.")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="These variants alone.")
def main(config: str, out: Path, seeds: int, jobs: int, only: tuple[str, ...]) -> None:
    """Train all variants of CONFIG and print the table."""
    variants = list(only or VARIANTS)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        tasks = [
            pool.submit(train, config, out / variant / str(seed), [*VARIANTS[variant], "--seed", str(seed)], threads)
            for variant, seed in product(variants, range(seeds))
        ]
        for task in tasks:
            task.result()
    click.echo(table(out, variants, seeds))


if __name__ == "__main__":
    main()
