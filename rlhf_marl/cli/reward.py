"""`rlhf-marl reward ...`: list, score, train, calibrate and compare reward models."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def reward() -> None:
    """List, score, train, calibrate and compare reward models."""


@reward.command("list")
@click.option("--folder", type=PATH, multiple=True, help="Also list the cards in this folder; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def list_cards(folder: tuple[Path, ...], as_json: bool) -> None:
    """List the shipped reward cards.

    Shows kind, scorer, licence, and whether the reward model is on this machine.
    """
    from rlhf_marl.files.locate import DATA_ROOT
    from rlhf_marl.rewards.listing import cards
    from rlhf_marl.sanitise import printable

    rows = cards([DATA_ROOT / "reward_models", *folder])
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(printable(row["card"]))
        for words in (", ".join(filter(None, (row["kind"], row["here"]))), row["scorer"], row["licence"]):
            if words:
                click.echo(textwrap.indent(textwrap.fill(printable(words), 74, break_on_hyphens=False), "    "))


@reward.command()
@click.argument("card")
@click.option("--prompt", help="The prompt.")
@click.option("--response", help="The response to score.")
@click.option("--input", "source", type=FILE, help="Instead: JSON Lines with `prompt` and `response`.")
@click.option("--output", type=PATH, help="Output file for the scored lines; by default stdout.")
def score(card: str, prompt: str | None, response: str | None, source: Path | None, output: Path | None) -> None:
    """Score one response, or the lines of a file, with CARD."""
    from rlhf_marl.errors import UsageError
    from rlhf_marl.rewards.tools import opened, read_texts, scored

    if (source is None) == (prompt is None or response is None):
        raise UsageError("reward score: give --prompt and --response, or --input")
    rows: list[dict[str, Any]] = [{"prompt": prompt, "response": response}] if source is None else read_texts(source)
    finished, model = opened(card)
    raw, scaled = scored(finished, model, rows, "reward score" if source is None else str(source))
    lines = [
        json.dumps(row | {"reward_raw": a, "reward_scaled": b}, ensure_ascii=False)
        for row, a, b in zip(rows, raw, scaled, strict=True)
    ]
    if output is not None:
        output.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        click.echo("\n".join(lines) if source is not None else f"raw {raw[0]:+.4f}  scaled {scaled[0]:+.4f}")


@reward.command()
@click.argument("card")
@click.option("--to", type=PATH, help="Output folder; by default the cache, where `rlhf-marl train` finds it.")
def train(card: str, to: Path | None) -> None:
    """Train the reward model that CARD describes.

    CARD must be of kind `trained`; its `data` are the preference pairs.
    """
    from rlhf_marl.errors import UsageError
    from rlhf_marl.rewards import TrainedCard, load_card
    from rlhf_marl.rewards.trained import cached_folder
    from rlhf_marl.rewards.training import train_reward_model

    recipe = load_card(card, "reward train")
    if not isinstance(recipe, TrainedCard):
        raise UsageError(
            f"reward train: {card} is a card of kind {recipe.kind}; only cards of kind trained can be trained"
        )
    folder = to or cached_folder(recipe, card)
    if to is None and (folder / "card.yaml").is_file():
        measured = json.loads((folder / "training.json").read_text("utf-8"))
        click.echo(f"already trained: {folder / 'card.yaml'}")
    else:
        if to is not None and to.exists():
            raise UsageError(f"--to: {str(to)!r} already exists")
        measured = train_reward_model(recipe, folder, card)
        click.echo(f"card: {folder / 'card.yaml'}")
    held_out = measured["held_out"]
    click.echo(
        f"held-out accuracy {held_out['accuracy']:.3f} (95% {held_out['low']:.3f} to {held_out['high']:.3f}, "
        f"{held_out['pairs']} pairs; trained on {measured['trained_on']}); "
        f"scale {measured['scale']}, offset {measured['offset']}"
    )
    _table([{name: f"{value:.3g}" for name, value in row.items()} for row in measured["reliability"]])
    if measured["gate"]:
        click.echo(f"the gate, on pairs that it was not trained on; trained on {measured['junk']} pairs with junk:")
        _gate_table(measured["gate"])


@reward.command()
@click.argument("card")
@click.option(
    "--pairs",
    default="reward_models/data/gate.jsonl",
    show_default=True,
    help="Pairs of a fluent answer and junk, with the kind of junk in the column `junk`.",
)
def gate(card: str, pairs: str) -> None:
    """Measure how often CARD prefers a fluent answer to junk.

    One row per kind of junk. Fails unless it does so in 95% of the pairs of each kind. Pairs that the card's own data
    hold are left out.
    """
    from rlhf_marl.rewards.gate import check_gate
    from rlhf_marl.rewards.tools import gated

    finished, table = gated(card, pairs)
    _gate_table({kind: row.model_dump() for kind, row in table.items()})
    check_gate(finished.name, table, "reward gate")


@reward.command()
@click.argument("card")
@click.option("--input", "source", type=FILE, required=True, help="JSON Lines with `prompt` and `response`.")
def calibrate(card: str, source: Path) -> None:
    """Print the scale and offset that standardise scores.

    With them, the scores of the given responses have mean 0 and standard deviation 1.
    """
    from rlhf_marl.rewards.tools import calibrated, opened, read_texts

    rows = read_texts(source)
    scale, offset = calibrated(*opened(card), rows, str(source))
    click.echo(f"scale: {scale:.4g}\noffset: {offset:.4g}")


@reward.command()
@click.argument("card", nargs=-1, required=True)
@click.option("--pairs", required=True, help="Preference pairs: a file, or a `datasets` source.")
@click.option("--split", default="train", show_default=True, help="Split of a `datasets` source.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Where prompt, chosen or rejected stands in another column; repeatable.",
)
@click.option(
    "--on-bad-row",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="Rows that are not pairs: stop, or leave them out and count them.",
)
@click.option("--json", "output", type=PATH, help="Also write the numbers to this file.")
def agreement(
    card: tuple[str, ...],
    pairs: str,
    split: str,
    columns: tuple[str, ...],
    on_bad_row: Literal["refuse", "skip"],
    output: Path | None,
) -> None:
    """Measure how often cards agree with preference pairs.

    Also measures how often the cards agree with each other.
    """
    from rlhf_marl.errors import UsageError
    from rlhf_marl.rewards.preferences import load_pairs
    from rlhf_marl.rewards.tools import agreement as compare
    from rlhf_marl.rewards.tools import opened

    names = dict(text.partition("=")[::2] for text in columns)
    if unknown := names.keys() - {"prompt", "chosen", "rejected"}:
        raise UsageError(f"reward agreement: --column: {min(unknown)!r} given; choose from prompt, chosen, rejected")
    read = load_pairs(pairs, "reward agreement: --pairs", split, columns=names, on_bad_row=on_bad_row)
    found = compare([opened(reference) for reference in card], read)
    _table(
        [
            {
                "card": name,
                "accuracy": f"{a.accuracy:.3f}",
                "95%": f"{a.low:.3f} to {a.high:.3f}",
                "pairs": str(a.pairs),
            }
            for name, a in found.accuracy.items()
        ]
    )
    if found.correlation:
        _table(
            [
                {"cards": " / ".join(names), "rank correlation": f"{rho:+.3f}", "95%": f"{low:+.3f} to {high:+.3f}"}
                for names, (rho, low, high) in found.correlation.items()
            ]
        )
    if output is not None:
        numbers: dict[str, float] = {}
        for name, a in found.accuracy.items():
            name = name.strip("()").replace(" ", "_")
            numbers |= {f"{name}.accuracy": a.accuracy, f"{name}.low": a.low, f"{name}.high": a.high}
        for (a_name, b_name), (rho, _, _) in found.correlation.items():
            numbers[f"{a_name}/{b_name}.rank_correlation"] = rho
        output.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


@reward.command()
@click.argument("run_dir", type=PATH)
@click.argument("card", nargs=-1, required=True)
def rescore(run_dir: Path, card: tuple[str, ...]) -> None:
    """Score a run's dialogues with other reward models.

    Writes a JSON line to stdout for each card, agent and iteration: the mean scaled reward.
    """
    from rlhf_marl.evaluation.rescore import rescored

    for row in rescored(run_dir, card):
        click.echo(json.dumps(row))


@reward.command()
@click.argument("run_dir", type=PATH)
@click.option("--to", type=PATH, required=True, help="Output file: JSON Lines, for a card's `junk`.")
@click.option(
    "--top",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Share of each agent's answers to look at: those with the highest rewards.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Most answers of an agent to look at.",
)
def mine(run_dir: Path, to: Path, top: float, limit: int) -> None:
    """Collect junk that a run's reward models scored highly.

    Junk repeats itself, or is less likely under the base model than 95% of that model's own answers. Each becomes a
    preference pair with the base model's answer to the same prompt.
    """
    from rlhf_marl.evaluation.mine import mine as mined

    rows = mined(run_dir, top=top, limit=limit)
    for agent in sorted({row["agent"] for row in rows}):
        kinds = [row["junk"] for row in rows if row["agent"] == agent]
        click.echo(f"agent {agent}: {kinds.count('repeats')} repeat themselves, {kinds.count('unlikely')} are unlikely")
    if rows:
        to.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        click.echo(f"{len(rows)} pairs: {to}")
    else:
        click.echo("no junk among the answers with the highest rewards; nothing written")


def _gate_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    _table(
        [
            {"junk": kind, "prefers fluent": f"{row['share']:.3f}", "pairs": str(row["pairs"])}
            for kind, row in rows.items()
        ]
    )


def _table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold", no_wrap=name == "card")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    Console().print(table)
