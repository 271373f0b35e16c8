"""Scoring in batches against one response at a time, interleaved in one run, for cards that run on this machine.

python benchmarks/rewards.py [CARD ...] [--pairs FILE] [--json FILE]
"""

import json
import statistics
import time
from pathlib import Path

import click

from rlhf_marl.rewards import RewardModel
from rlhf_marl.rewards.preferences import Pair, load_pairs
from rlhf_marl.rewards.tools import opened

CARDS = ("reward_models/harmless.yaml", "reward_models/courteous.yaml", "reward_models/clean_language.yaml")
REPEATS, ROWS = 5, 64


def seconds(model: RewardModel, pairs: list[Pair], batch: int) -> float:
    """Time to score the chosen responses, `batch` at a call."""
    started = time.perf_counter()
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        model.score([pair.prompt for pair in part], [pair.chosen for pair in part])
    return time.perf_counter() - started


@click.command()
@click.argument("cards", nargs=-1)
@click.option("--pairs", default="reward_models/data/harmless.jsonl", show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(cards: tuple[str, ...], pairs: str, output: Path | None) -> None:
    """Measure CARDS (by default three shipped ones)."""
    rows = load_pairs(pairs, "--pairs")[:ROWS]
    numbers: dict[str, float] = {}
    for reference in cards or CARDS:
        card, model = opened(reference)
        seconds(model, rows, ROWS)  # loads what is lazy
        times = [(seconds(model, rows, 1), seconds(model, rows, ROWS)) for _ in range(REPEATS)]
        one, batched = (statistics.median(column) for column in zip(*times, strict=True))
        numbers |= {f"{card.name}.pairs_per_second": len(rows) / batched, f"{card.name}.batched_speedup": one / batched}
        click.echo(
            f"{card.name}: one by one {len(rows) / one:.0f} a second, batched {len(rows) / batched:.0f} a second, "
            f"{one / batched:.2f} x"
        )
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
