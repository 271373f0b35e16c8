"""How often a 95% interval of `rlhf-marl evaluate` holds the true difference, in simulated evaluations.

python benchmarks/intervals.py [--evaluations N] [--json FILE]
"""

import json
from pathlib import Path

import click
import numpy as np

from rlhf_marl.evaluation import statistics

# How a question's difference trained - base is drawn, shifted to a mean of 0; the skewness is in the comments.
DIFFERENCES = {
    "symmetric": lambda generator, n: generator.laplace(size=n),  # skewness 0
    "exponential": lambda generator, n: generator.exponential(size=n) - 1,  # skewness 2
    "lognormal": lambda generator, n: generator.lognormal(size=n) - np.exp(0.5),  # skewness 6.2
}
KINDS = (*DIFFERENCES, "yes or no")
QUESTIONS = (60, 18, 10)
RESAMPLES = 999  # as many as two digits of a limit need


def coverage(kind: str, n_questions: int, evaluations: int, seed: int = 11) -> float:
    """Share of simulated evaluations whose interval holds the known difference.

    Questions share a difficulty, so that base and trained are dependent, as with the same random numbers.
    """
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(evaluations):
        difficulty = generator.normal(size=n_questions)
        if kind == "yes or no":
            truth = 0.2  # P(trained refuses) - P(base refuses), question by question
            chance = 0.1 + 0.5 / (1 + np.exp(-difficulty))
            base, trained = generator.random((2, n_questions)) < [chance, chance + truth]
        else:
            truth = 0.3
            base = difficulty
            trained = base + truth + DIFFERENCES[kind](generator, n_questions)
        metric = statistics.paired(base.astype(float), trained.astype(float))
        assert metric is not None
        hits += metric["low"] <= truth <= metric["high"]
    return hits / evaluations


@click.command()
@click.option("--evaluations", default=6000, show_default=True, type=click.IntRange(1))
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(evaluations: int, output: Path | None) -> None:
    """The table of docs/evaluation.md."""
    statistics.RESAMPLES = RESAMPLES
    numbers = {}
    for n_questions in QUESTIONS:
        for kind in KINDS:
            numbers[f"{n_questions}.{kind}"] = coverage(kind, n_questions, evaluations)
            click.echo(f"{n_questions} questions, {kind}: {numbers[f'{n_questions}.{kind}']:.3f}")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
