"""Does cooperation pay? Arms of one task on paired seeds, and the contrasts that were planned in docs/cooperation.md.

    python benchmarks/cooperation.py keys|team [--seeds 12] [--jobs 2] [--only ARM ...] [--out FOLDER] [--table]

Every run becomes a line of benchmarks/cooperation_results/<task>.jsonl as soon as it is finished, and a run with a line
is not repeated: an interrupted plan goes on, also on another machine, and an interrupted run from its last checkpoint.
Delete the file to measure another version. A GPU is used where there is one, by all jobs at once; runs of one seed
should come from one kind of machine, because they are compared.

A line's `returns` are those of fresh dialogues between the final adapters: Σ_k γ^k of the rewards, mean over agents and
dialogues, in units of the task's reward. Arm `untrained` plays them without training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import click
import numpy as np
import torch
from scipy.stats import t as student

from rlhf_marl.config import Config, check_config
from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.files.atomic import locked
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.gridworld.study.claims import holm
from rlhf_marl.policy.loading import default_device
from rlhf_marl.runs.metrics import value_correlation
from rlhf_marl.sweeps.execute import execute
from rlhf_marl.sweeps.grid import Planned, plan_arms
from rlhf_marl.sweeps.processes import on_this_machine
from rlhf_marl.training.build import build
from rlhf_marl.training.loop import first_prompts

RESULTS = Path(__file__).parent / "cooperation_results"
ARMS: dict[str, dict[str, Any]] = {
    "gossip_20": {},
    "independent": {"cooperation": "independent"},
    "return": {"actor.signal": "return"},
    "centralised": {"cooperation": "centralised"},
    "gossip_1": {"topology.gossip_rounds": 1},
    "placebo": {"cooperation": "placebo"},
}
MARGIN = 0.1  # the smallest difference that counts, as a share of the way from `untrained` to the yardstick
PLAYED = 64  # fresh dialogues per run
FIRST_FRESH = 2**32  # their numbers, which no training reaches: other questions' order and other random numbers


@final
@dataclass(frozen=True, slots=True)
class Contrast:
    """A planned comparison of two arms' shares. kind: above: by more than MARGIN; equal: within it; other: not 0."""

    arm: str
    reference: str
    kind: str

    def p_value(self, difference: np.ndarray) -> float:
        """Student's t test of the paired differences, n; the larger of both one-sided ones for `equal`."""
        error, freedom = difference.std(ddof=1) / len(difference) ** 0.5, len(difference) - 1
        above = [float(student.sf((difference.mean() - bound) / error, freedom)) for bound in (-MARGIN, 0, MARGIN)]
        if self.kind == "equal":
            return max(above[0], 1 - above[2])
        return above[2] if self.kind == "above" else 2 * min(above[1], 1 - above[1])


@final
@dataclass(frozen=True, slots=True)
class Task:
    """One problem for several arms.

    Attributes:
        yardstick: 100% of the way: a return, or the arm whose mean return it is.
        further: what an arm needs in this task besides its own values.
        fresh: config sections of the fresh dialogues that differ from the training's.
    """

    config: str
    arms: Sequence[str]
    yardstick: float | str
    contrasts: Sequence[Contrast]
    further: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fresh: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    # Everybody says its key, which costs 0.2, and is then paid 1 for the three open doors: -0.2 + 0.9 * 1.
    "keys": Task(
        "configs/keys.yaml",
        tuple(ARMS),
        0.7,
        (
            Contrast("gossip_20", "independent", "above"),
            Contrast("gossip_20", "centralised", "equal"),
            Contrast("gossip_20", "return", "other"),
        ),
        further={"return": {"actor.turns_per_update": 2}},  # returns are known when a dialogue ends
    ),
    "team": Task(
        "configs/team.yaml",
        ("gossip_20", "independent", "return", "centralised", "gossip_1"),
        "centralised",
        (Contrast("gossip_20", "independent", "above"), Contrast("gossip_20", "return", "other")),
        fresh={"prompts": {"source": "jsonl", "path": "prompts/evaluation.jsonl", "on_bad_row": "skip"}},  # held out
    ),
}


def fresh_returns(config: Config, task: Task, adapters: Path | None) -> list[float]:
    """Each agent's mean return in fresh dialogues, N; of untrained agents if `adapters` is None."""
    content = config.model_dump(mode="json") | {"validation": None, "cooperation": "gossip"} | task.fresh
    for i, agent in enumerate(content["agents"]):
        agent["adapter"] = None if adapters is None else str(adapters / f"agent_{i}")
    experiment = build(check_config(content, "fresh dialogues"), "fresh dialogues", default_device())
    total = torch.zeros(len(config.agents))
    for iteration in range(PLAYED // config.dialogues):
        dialogues = first_prompts(experiment, FIRST_FRESH // config.dialogues + iteration)
        for k, turn in enumerate(experiment.player.play(dialogues)):
            total += config.discount**k * experiment.team.score(turn).reward_scaled.mean(1).cpu()
    return (total / (PLAYED // config.dialogues)).tolist()


def line(run: Planned, task: Task) -> dict[str, Any]:
    """The finished run's compact numbers."""
    rows, turns = read_jsonl(run.path / "metrics.jsonl"), read_jsonl(run.path / "dialogues.jsonl")
    last = [row for row in rows if row["update"] == rows[-1]["update"]]
    predicted = value_correlation(turns, run.config.discount)
    return {
        "arm": run.arm,
        "seed": run.seed,
        "returns": fresh_returns(run.config, task, run.path / "adapters"),
        "value_correlation": None if predicted is None else predicted[0],
        "kl": float(np.mean([row["kl"] for row in last])),
    }


def add_line(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def measure(task: Task, path: Path, seeds: Sequence[int], arms: Sequence[str], out: Path, jobs: int) -> None:
    """Train what has no line yet, seed by seed, so that an interrupted plan leaves paired runs."""
    content = load_yaml(find_data(task.config, "config"))
    chosen = {arm: {**ARMS[arm], **task.further.get(arm, {})} for arm in arms}
    done = {(row["arm"], row["seed"]) for row in read_lines(path)}
    planned = [run for seed in seeds for run in plan_arms(content, task.config, chosen, [seed], out)]
    runs = [run for run in planned if (run.arm, run.seed) not in done]

    def report(run: Planned, what: str) -> None:
        click.echo(f"{run.name}: {what}")
        if what == "finished":  # the other trainings go on meanwhile
            add_line(path, line(run, task))

    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "--out"):
        for seed in seeds:
            if ("untrained", seed) not in done:
                config = check_config(content | {"seed": seed}, task.config)
                add_line(path, {"arm": "untrained", "seed": seed, "returns": fresh_returns(config, task, None)})
        failures = execute(runs, start=on_this_machine(jobs), jobs=jobs, evaluate=False, report=report)
    if failures:
        reasons = "\n".join(f"{name}: {reason}" for name, reason in failures.items())
        raise click.ClickException(f"some runs failed; the same command tries them again\n{reasons}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def shares(rows: Sequence[Mapping[str, Any]], yardstick: float | str) -> dict[str, dict[int, float]]:
    """By arm and seed: (return - untrained) / (yardstick - untrained), means over the agents."""
    returns: dict[str, dict[int, float]] = {}
    for row in rows:
        returns.setdefault(row["arm"], {})[row["seed"]] = float(np.mean(row["returns"]))
    start = returns.get("untrained", {})
    if isinstance(yardstick, str) and yardstick not in returns:
        raise click.ClickException(f"no finished run of arm {yardstick}, which is the yardstick")
    goal = float(np.mean(list(returns[yardstick].values()))) if isinstance(yardstick, str) else yardstick
    return {
        arm: {seed: (value - start[seed]) / (goal - start[seed]) for seed, value in by_seed.items() if seed in start}
        for arm, by_seed in returns.items()
        if arm != "untrained"
    }


def table(rows: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Markdown: a row per arm, then one per planned contrast."""
    found = shares(rows, task.yardstick)
    lines = ["| arm | seeds | share of the way [95% interval] | V against returns | KL, nats an answer |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for arm in (arm for arm in task.arms if arm in found):
        of_arm = [row for row in rows if row["arm"] == arm]
        known = [row["value_correlation"] for row in of_arm if row["value_correlation"] is not None]
        mean, low, high = over_seeds(list(found[arm].values()))
        interval = f" [{low:.0%}, {high:.0%}]" if len(found[arm]) > 1 else ""
        predicted = f"{np.mean(known):+.2f}" if known else "no critic"
        kl = np.mean([row["kl"] for row in of_arm])
        lines.append(f"| {arm} | {len(found[arm])} | {mean:.0%}{interval} | {predicted} | {kl:.1f} |")
    lines += ["", "| contrast | seeds | difference [95% interval] | p | p, Holm |", "| --- | --- | --- | --- | --- |"]
    tested = []
    for contrast in task.contrasts:
        one, other = found.get(contrast.arm, {}), found.get(contrast.reference, {})
        pairs = np.array([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
        if len(pairs) >= 2:
            tested.append((contrast, pairs, contrast.p_value(pairs)))
    adjusted = holm(np.array([p for _, _, p in tested])) if tested else []
    claims = {"above": f"above by more than {MARGIN:.0%}", "equal": f"equal within {MARGIN:.0%}", "other": "different"}
    for (contrast, pairs, p), after in zip(tested, adjusted, strict=True):
        mean, low, high = over_seeds(pairs)
        name = f"{contrast.arm} and {contrast.reference}: {claims[contrast.kind]}"
        lines.append(f"| {name} | {len(pairs)} | {mean:+.0%} [{low:+.0%}, {high:+.0%}] | {p:.3f} | {after:.3f} |")
    return "\n".join(lines)


@click.command()
@click.argument("name", type=click.Choice(list(TASKS)))
@click.option("--seeds", default=12, show_default=True, type=click.IntRange(2))
@click.option(
    "--jobs", default=2, show_default=True, type=click.IntRange(1), help="Runs at once; they share the cores."
)
@click.option("--only", multiple=True, type=click.Choice(list(ARMS)), help="These arms alone.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/cooperation"), show_default=True)
@click.option("--table", "only_table", is_flag=True, help="Train nothing; print the table of the runs that exist.")
def main(name: str, seeds: int, jobs: int, only: tuple[str, ...], out: Path, only_table: bool) -> None:
    """Train the task's arms and print the table."""
    task, path = TASKS[name], RESULTS / f"{name}.jsonl"
    if not only_table:
        RESULTS.mkdir(exist_ok=True)
        measure(task, path, range(seeds), [arm for arm in task.arms if not only or arm in only], out / name, jobs)
    click.echo(table(read_lines(path), task))


if __name__ == "__main__":
    main()
