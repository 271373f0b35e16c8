"""Evaluations in the terminal: one run in full, or several side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_marl.errors import printable
from rlhf_marl.evaluation.statistics import direction
from rlhf_marl.reporting.terminal import first_and_last_fifth

_ROWS = {
    "own_reward": "own reward",
    "held_out_reward": "held-out judges",
    "win_rate": "win rate",
    "refusal_harmful": "refuses harm",
    "refusal_harmless": "over-refuses",
    "kl_to_base": "KL to base",
    "entropy": "entropy",
    "length": "tokens",
    "truncated": "cut at limit",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_repetition": "repeats itself",
}
_LINES: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "agreement between agents": lambda result: result["agreement"],
    "controller fell back": lambda result: result["controller_fallbacks"],
    "own reward, one answer of the base model → trained team": lambda result: _against(result, "own_reward"),
    "held-out judges, one answer of the base model → trained team": lambda result: _against(result, "held_out_reward"),
}
_METRIC = ("base", "trained", "difference", "low", "high")
_SIDE_BY_SIDE = ("own_reward", "held_out_reward", "win_rate", "refusal_harmful", "refusal_harmless", "kl_to_base")


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print one evaluation: a table with base → trained and the interval of the difference, and the verdicts."""
    console = console or Console(highlight=False)
    settings = result["settings"]
    table = Table(
        title=f"{settings['n_questions']} questions: base → trained [95% of the difference]",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for agent in result["agents"]:
        table.add_column(Text(f"agent {agent['agent']}\n{printable(agent['reward_model'])}", overflow="fold"))
    table.add_column("team")
    for key, label in _ROWS.items():
        cells = [cell(column.get(key)) for column in (*result["agents"], result["team"])]
        table.add_row(label, *(Text(text) for text in cells))
    console.print(table)
    console.print(_cross_rewards(result["cross_rewards"]))
    if result["team"]["win_rate"] is not None:
        _say(console, f"win rate decided by {result['team']['win_rate']['judge']}")
    for label, metric in _LINES.items():
        found = metric(result)
        if found is not None:
            _say(console, f"{label}: {cell(found)}".replace("\n", " "))
    for agent in result["agents"]:
        _say(console, f"agent {agent['agent']} ({agent['reward_model']}): {agent['verdict']}")
    for warning in result["warnings"]:
        _say(console, f"warning: {warning}", "yellow")


def _say(console: Console, line: str, style: str = "") -> None:
    """One line, whatever a file put into it."""
    console.print(Text(printable(line), style=style), soft_wrap=True)


def _against(result: dict[str, Any], key: str) -> dict[str, Any] | None:
    return (result["team"].get("against_single") or {}).get(key)


def _cross_rewards(cross: dict[str, Any]) -> Table:
    """Every reward model on every agent's answers; green where it rose, red where it fell, both beyond the interval."""
    table = Table(
        title="every reward model on every agent: difference; * trained this agent", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("reward model", overflow="fold")
    for row in cross["rows"]:
        table.add_column(Text(printable(row)))
    for j, judge in enumerate(cross["judges"]):
        cells = []
        for i in range(len(cross["rows"])):
            found = {key: cross[key][i][j] for key in ("difference", "low", "high")}
            style = {1: "green", -1: "red", 0: ""}[direction(found)]
            mark = "*" if i in judge["trained_agents"] else ""
            value, _, between = cell(found, short=True).partition("\n")
            cells.append(Text(f"{value}{mark}\n{between}", style=style))
        table.add_row(Text(printable(judge["name"]) + ("" if judge["trained_agents"] else "\nheld out")), *cells)
    return table


def show_side_by_side(
    names: Sequence[str],
    results: Sequence[dict[str, Any]],
    compared: dict[str, Any],
    console: Console | None = None,
) -> None:
    """Print several runs: each against its own base model, then every other one against the first."""
    console = console or Console(highlight=False)
    table = Table(title="trained against base: difference [95% interval]", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "", *names):
        table.add_column(Text(printable(column)), overflow="fold")
    n_agents = max(len(result["agents"]) for result in results)
    for i in [*range(n_agents), "team"]:
        columns = [_speaker(result, i) for result in results]
        table.add_row(f"agent {i}" if i != "team" else "team", "reward model", *(_reward_model(c) for c in columns))
        for key in _SIDE_BY_SIDE:
            cells = [cell(column.get(key), short=True) for column in columns]
            table.add_row("", _ROWS[key], *(Text(text) for text in cells))
        table.add_section()
    console.print(table)
    for name, comparison in compared.items():
        title = Text(printable(f"trained agents of {name} against those of {names[0]}: difference [95% interval]"))
        found = [*comparison["agents"], comparison["team"]]
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("", *(f"agent {i}" for i in range(len(comparison["agents"]))), "team"):
            table.add_column(column)
        for key in found[-1]:
            label = _ROWS.get(key, f"judge {key}")
            table.add_row(Text(printable(label)), *(Text(cell(column[key], short=True)) for column in found))
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
    return Text(printable(column.get("reward_model", "all" if column else "-")))


def show_recorded(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print what training recorded, of a run that cannot be evaluated: on its own question, base model unknown."""
    if not rows:
        return
    console = console or Console(highlight=False)
    table = Table(title="recorded in training: mean scaled reward", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("agent", "reward model", "first fifth", "last fifth"):
        table.add_column(column)
    for agent, name in sorted({row["agent"]: row["reward_model"] for row in rows}.items()):
        first, last = first_and_last_fifth(rows, agent)
        table.add_row(str(agent), Text(printable(name)), f"{first:+.3f}", f"{last:+.3f}")
    console.print(table)


def cell(metric: dict[str, Any] | None, *, short: bool = False) -> str:
    """`base → trained` (or with `short` the difference, or a single mean) over its interval, if it has a width."""
    if metric is None:
        return "-"
    low, high = metric["low"], metric["high"]
    wide = low is not None and high is not None and low < high
    if "difference" not in metric:
        value = metric.get("rate", metric.get("mean"))
        return "-" if value is None else f"{value:.2f}" + (f"\n[{low:.2f}, {high:.2f}]" if wide else "")
    value = f"{metric['difference']:+.2f}" if short else f"{metric['base']:.2f} → {metric['trained']:.2f}"
    return value + (f"\n[{low:.2f}, {high:.2f}]" if wide else "")


def markdown(result: dict[str, Any]) -> str:
    """The table of one evaluation and its verdicts, for documents."""
    columns = [*result["agents"], result["team"]]
    heads = [*(f"agent {agent['agent']}: {agent['reward_model']}" for agent in result["agents"]), "team"]
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for key, label in _ROWS.items():
        cells = [cell(column.get(key)).replace("\n", " ") for column in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    cross = result["cross_rewards"]
    for j, judge in enumerate(cross["judges"]):
        found = [{key: cross[key][i][j] for key in _METRIC} for i in range(len(cross["rows"]))]
        cells = [cell(metric).replace("\n", " ") for metric in found]
        label = judge["name"] if judge["trained_agents"] else f"{judge['name']} (held out)"
        lines.append(f"| by {label} | {' | '.join(cells)} |")
    verdicts = [f"- agent {a['agent']} ({a['reward_model']}): {a['verdict']}" for a in result["agents"]]
    return "\n".join([*lines, "", *verdicts]) + "\n"
