"""A sweep's numbers as rows of text, and as tables in the terminal."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from rlhf_marl.evaluation.statistics import direction
from rlhf_marl.reporting.terminal import safe_text

Numbers = Mapping[str, Any]
_TONES = {1: "up", -1: "down", 0: ""}
_STYLES = {"up": "green", "down": "red", "": ""}


class Cell(NamedTuple):
    """A mean, its interval in brackets, and up or down if the interval excludes 0."""

    value: str
    interval: str
    tone: str


class Line(NamedTuple):
    """One speaker of one arm."""

    arm: str
    speaker: str
    model: str
    reward: Cell
    change: Cell
    held_out: Cell
    verdicts: list[str]


class Difference(NamedTuple):
    arm: str
    speaker: str
    reward: Cell
    held_out: Cell
    seeds: str
    note: str


def cell(numbers: Numbers | None, *, toned: bool = True) -> Cell:
    """An interval as text; a dash where there is nothing."""
    if numbers is None:
        return Cell("–", "", "")
    between = "" if numbers["low"] is None else f"[{numbers['low']:+.2f}, {numbers['high']:+.2f}]"
    return Cell(f"{numbers['mean']:+.2f}", between, _TONES[direction(dict(numbers))] if toned else "")


def lines(sweep: Numbers) -> list[Line]:
    """Every arm's speakers."""
    return [
        Line(
            arm["name"],
            speaker["name"],
            speaker["reward_model"] or "mean of the agents",
            cell(speaker["reward"], toned=False),
            cell(speaker["change"]),
            cell(speaker["held_out"]),
            [f"{count} × {sentence}" for sentence, count in speaker["verdicts"].items()],
        )
        for arm in sweep["arms"]
        for speaker in arm["speakers"]
    ]


def differences(sweep: Numbers) -> list[Difference]:
    """Every other arm minus the reference."""
    return [
        Difference(
            row["arm"],
            row["speaker"],
            cell(row["reward"]),
            cell(row["held_out"]),
            str((row["reward"] or row["held_out"] or {"n": 0})["n"]),
            row["note"] or "",
        )
        for row in sweep["differences"]
    ]


def failures(sweep: Numbers) -> list[tuple[str, str]]:
    """(folder, reason) of every run that is not finished."""
    return [
        (run["folder"], run["reason"]) for arm in sweep["arms"] for run in arm["runs"] if run["state"] != "finished"
    ]


def show_sweep(sweep: Numbers, console: Console | None = None) -> None:
    """Print an arm per row group: reward at the end, its change, held-out judges; then paired differences."""
    console = console or Console(highlight=False)
    found = lines(sweep)
    evaluated = any(line.held_out.value != "–" for line in found)
    heads = [
        "",
        "reward,\nlast fifth",
        "change from\nfirst fifth",
        *(["held-out,\ntrained − base"] if evaluated else []),
    ]
    for arm in sweep["arms"]:
        seeds = sum(run["state"] == "finished" for run in arm["runs"])
        table = _table(f"{arm['name']} ({seeds} {'seed' if seeds == 1 else 'seeds'})", heads)
        for line in (line for line in found if line.arm == arm["name"]):
            cells = [line.reward, line.change, *([line.held_out] if evaluated else [])]
            table.add_row(safe_text(f"{line.speaker}: {line.model}"), *map(_shown, cells))
        console.print(table)
        for line in (line for line in found if line.arm == arm["name"]):
            for verdict in line.verdicts:
                console.print(safe_text(f"{line.speaker}: {verdict}"), soft_wrap=True)
    if compared := differences(sweep):
        table = _table(
            f"minus {sweep['reference']}, paired by seed",
            ["", "reward,\nlast fifth", *(["held-out"] if evaluated else []), "seeds"],
        )
        for row in compared:
            cells = [row.reward, *([row.held_out] if evaluated else [])]
            table.add_row(safe_text(f"{row.arm}: {row.speaker}"), *map(_shown, cells), row.seeds)
        console.print(table)
        for row in compared:
            if row.note:
                console.print(safe_text(f"{row.arm}: {row.speaker}: {row.note}"), soft_wrap=True)


def _table(title: str, heads: list[str]) -> Table:
    table = Table(title=safe_text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _shown(found: Cell) -> Any:
    text = safe_text(found.value, _STYLES[found.tone])
    return text.append(f"\n{found.interval}") if found.interval else text
