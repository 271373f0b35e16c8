"""Evaluations in the terminal: one run in full, or several side by side."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_marl.evaluation.labels import LABELS, label_of
from rlhf_marl.evaluation.statistics import direction
from rlhf_marl.reporting.tables import cross_metric, formatted
from rlhf_marl.reporting.terminal import safe_text
from rlhf_marl.runs.metrics import first_and_last_fifth
from rlhf_marl.sanitise import printable

_SIDE_BY_SIDE = ("own_reward", "held_out_reward", "win_rate", "refusal_harmful", "refusal_harmless", "kl_to_base")


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print one evaluation: a table with base → trained and the interval of the difference, and the verdicts."""
    console = console or Console(highlight=False)
    settings = result["settings"]
    heads = [Text(f"agent {agent['agent']}\n{printable(agent['reward_model'])}") for agent in result["agents"]]
    title = f"{settings['n_questions']} questions: base → trained [95% of the difference]"
    table = _table(title, "", *heads, "team")
    for key, label in LABELS.items():
        cells = [_cell(column.get(key)) for column in (*result["agents"], result["team"])]
        table.add_row(label.short, *(Text(text) for text in cells))
    console.print(table)
    console.print(_cross_rewards(result["cross_rewards"]))
    if result["team"]["win_rate"] is not None:
        _say(console, f"win rate decided by {result['team']['win_rate']['judge']}")
    against = "one answer of the base model → trained team"
    for words, metric in {
        "agreement between agents": result["agreement"],
        "controller fell back (share of turns)": result["controller_fallbacks"],
        f"own reward, {against}": result["team"]["against_single"]["own_reward"],
        f"held-out judges, {against}": result["team"]["against_single"]["held_out_reward"],
    }.items():
        if metric is not None:
            _say(console, f"{words}: {_cell(metric, between=' ')}")
    for agent in result["agents"]:
        _say(console, f"agent {agent['agent']} ({agent['reward_model']}): {agent['verdict']}")
    for warning in result["warnings"]:
        _say(console, f"warning: {warning}", "yellow")


def _table(title: str | Text, *heads: str | Text) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(safe_text(head) if isinstance(head, str) else head, overflow="fold")
    return table


def _say(console: Console, line: str, style: str = "") -> None:
    """Print one line, sanitised."""
    console.print(safe_text(line, style), soft_wrap=True)


def _cross_rewards(cross: dict[str, Any]) -> Table:
    """Every reward model on every agent's answers; green or red where the interval is above or below zero."""
    title = "every agent scored by every reward model: difference; * trained this agent"
    table = _table(title, "reward model", *cross["rows"])
    for j, judge in enumerate(cross["judges"]):
        cells = []
        for i in range(len(cross["rows"])):
            found = cross_metric(cross, i, j)
            style = {1: "green", -1: "red", 0: ""}[direction(found)]
            mark = "*" if i in judge["trained_agents"] else ""
            value, _, between = _cell(found, difference=True).partition("\n")
            cells.append(Text(f"{value}{mark}\n{between}", style=style))
        table.add_row(safe_text(judge["name"]) + ("" if judge["trained_agents"] else "\nheld out"), *cells)
    return table


def show_side_by_side(
    names: Sequence[str],
    results: Sequence[dict[str, Any]],
    compared: dict[str, Any],
    console: Console | None = None,
) -> None:
    """Print several runs: each against its own base model, then the others against the first."""
    console = console or Console(highlight=False)
    table = _table("trained against base: difference [95% interval]", "", "", *names)
    n_agents = max(len(result["agents"]) for result in results)
    for i in [*range(n_agents), "team"]:
        columns = [_speaker(result, i) for result in results]
        table.add_row(f"agent {i}" if i != "team" else "team", "reward model", *(_reward_model(c) for c in columns))
        for key in _SIDE_BY_SIDE:
            cells = [_cell(column.get(key), difference=True) for column in columns]
            table.add_row("", LABELS[key].short, *(Text(text) for text in cells))
        table.add_section()
    console.print(table)
    for name, comparison in compared.items():
        title = safe_text(f"trained agents of {name} against those of {names[0]}: difference [95% interval]")
        found = [*comparison["agents"], comparison["team"]]
        table = _table(title, "", *(f"agent {i}" for i in range(len(comparison["agents"]))), "team")
        for key in found[-1]:
            cells = [_cell(column[key], difference=True) for column in found]
            table.add_row(safe_text(label_of(key).short), *(Text(text) for text in cells))
        if found[-1]:
            console.print(table)
        for warning in comparison["warnings"]:
            _say(console, f"warning: {name}: {warning}", "yellow")
    for name, result in zip(names, results, strict=True):
        for agent in result["agents"]:
            _say(console, f"{name}: agent {agent['agent']} ({agent['reward_model']}): {agent['verdict']}")
        for warning in result["warnings"]:
            _say(console, f"warning: {name}: {warning}", "yellow")


def _speaker(result: dict[str, Any], i: int | str) -> dict[str, Any]:
    if isinstance(i, str):
        return dict(result["team"])
    return dict(result["agents"][i]) if i < len(result["agents"]) else {}


def _reward_model(column: dict[str, Any]) -> Text:
    return safe_text(column.get("reward_model", "all" if column else "-"))


def show_recorded(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print the rewards recorded in training, for a run that cannot be evaluated."""
    if not rows:
        return
    console = console or Console(highlight=False)
    title = "recorded in training: mean scaled reward"
    table = _table(title, "agent", "reward model", "first fifth", "last fifth")
    for agent, name in sorted({row["agent"]: row["reward_model"] for row in rows}.items()):
        first, last = first_and_last_fifth([row["reward_scaled"] for row in rows if row["agent"] == agent])
        table.add_row(str(agent), safe_text(name), f"{first:+.3f}", f"{last:+.3f}")
    console.print(table)


def _cell(metric: dict[str, Any] | None, *, difference: bool = False, between: str = "\n") -> str:
    """A metric's value, and its interval unless that has no width."""
    return between.join(filter(None, formatted(metric, difference=difference)))


def markdown(result: dict[str, Any]) -> str:
    """The table of one evaluation and its verdicts, for documents."""
    columns = [*result["agents"], result["team"]]
    heads = [*(f"agent {agent['agent']}: {agent['reward_model']}" for agent in result["agents"]), "team"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for key, label in LABELS.items():
        cells = [_cell(column.get(key), between=" ") for column in columns]
        lines.append(f"| {label.short} | {' | '.join(cells)} |")
    cross = result["cross_rewards"]
    for j, judge in enumerate(cross["judges"]):
        cells = [_cell(cross_metric(cross, i, j), between=" ") for i in range(len(cross["rows"]))]
        name = judge["name"] if judge["trained_agents"] else f"{judge['name']} (held out)"
        lines.append(f"| by {name} | {' | '.join(cells)} |")
    verdicts = [f"- agent {a['agent']} ({a['reward_model']}): {a['verdict']}" for a in result["agents"]]
    return "\n".join([*lines, "", *verdicts]) + "\n"
