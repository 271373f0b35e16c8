"""Dialogues of an evaluated run in full, as Markdown: the base models' answers beside the trained agents'.

    python benchmarks/side_by_side.py RUN [--every 3] [--first 20] > dialogues.md

Takes every third question of the evaluation in its order, whatever was said. RUN must have been evaluated.
"""

import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import DIALOGUES
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.sanitise import visible

POLICIES = {"base": "base models", "trained": "trained agents"}

wrapped = partial(textwrap.wrap, width=110, subsequent_indent="   ", break_on_hyphens=False)


def fenced(text: str) -> str:
    """The text as a code block, which it cannot end: nothing that a model wrote becomes markup."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = [part for line in visible(text).splitlines() for part in wrapped(line) or [""]]
    return "\n".join([f"{fence}text", *lines, fence])


def markdown(rows: list[dict[str, Any]], every: int, first: int) -> Iterator[str]:
    """The chosen questions' turns: the prompt, and each agent's answer by base models and trained agents."""
    turns: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        turns.setdefault(row["question"], {}).setdefault(row["turn"], {})[row["policy"]] = row
    for question, of_question in list(turns.items())[::every][:first]:
        for turn, by_policy in of_question.items():
            yield f"## {question}" + (f", turn {turn + 1}" if turn else "")
            for policy, name in POLICIES.items():
                row = by_policy[policy]
                if policy == "base" or row["prompt"] != by_policy["base"]["prompt"]:
                    yield fenced(row["prompt"])
                answers = [f"{agent}: " + text.replace("\n", "\n   ") for agent, text in enumerate(row["responses"])]
                scores = ", ".join(f"{judge} {score:+.2f}" for judge, score in row["aggregate_scores"].items())
                yield f"{name}: {scores}"
                yield fenced("\n".join(answers))


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--every", default=3, show_default=True, type=click.IntRange(1), help="Distance between the questions.")
@click.option("--first", default=20, show_default=True, type=click.IntRange(1), help="Number of questions.")
def main(run: Path, every: int, first: int) -> None:
    """Print the dialogues."""
    if not (run / DIALOGUES).is_file():
        raise click.ClickException(f"{run}: has no evaluation; run rlhf-marl evaluate first")
    try:
        click.echo("\n\n".join(markdown(read_jsonl(run / DIALOGUES), every, first)))
    except (UsageError, KeyError) as error:
        raise click.ClickException(f"{run / DIALOGUES}: incomplete ({error}); evaluate again") from None


if __name__ == "__main__":
    main()
