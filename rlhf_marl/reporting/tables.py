"""evaluation.json as text for the tables of report.html and of the terminal; pure functions."""

from typing import Any

from rlhf_marl.evaluation.labels import LABELS, label_of

_MORE_IS_BETTER = {"own_reward", "held_out_reward"}
Cell = dict[str, str]


def held_out(evaluation: dict[str, Any]) -> dict[str, Any]:
    """{heads, rows: [(label, cells)], verdicts, ...} of an evaluation."""
    team, agents = evaluation["team"], evaluation["agents"]
    return {
        "heads": [(f"agent {a['agent']}", a["reward_model"]) for a in agents] + [("team", "aggregated answer")],
        "rows": [
            (label.long, [cell(speaker.get(key), key in _MORE_IS_BETTER) for speaker in (*agents, team)])
            for key, label in LABELS.items()
        ],
        "verdicts": [(f"Agent {agent['agent']}", agent["reward_model"], agent["verdict"]) for agent in agents],
        "agreement": cell(evaluation["agreement"]),
        "fallbacks": cell(evaluation["controller_fallbacks"]),
        "single": [
            (LABELS[key].long, cell(team["against_single"][key], True))
            for key in ("own_reward", "held_out_reward")
            if team["against_single"][key] is not None
        ],
        "questions": str(evaluation["settings"]["n_questions"]),
        "judge": team["win_rate"]["judge"] if team["win_rate"] else "",
        "warnings": evaluation["warnings"],
    }


def cross_rewards(cross: dict[str, Any]) -> dict[str, Any]:
    """{judges: [(name, held out?)], rows: [(name, cells)]}: differences trained - base with their intervals."""
    rows = []
    for i, name in enumerate(cross["rows"]):
        cells = [
            cell(cross_metric(cross, i, j), True, difference=True)
            | {"own": "*" if i in judge["trained_agents"] else ""}
            for j, judge in enumerate(cross["judges"])
        ]
        rows.append((name, cells))
    return {"judges": [(judge["name"], not judge["trained_agents"]) for judge in cross["judges"]], "rows": rows}


def cross_metric(cross: dict[str, Any], row: int, judge: int) -> dict[str, Any]:
    """One cell of the cross-reward tables, as a metric."""
    return {key: cross[key][row][judge] for key in ("base", "trained", "difference", "low", "high")}


def compared(comparison: dict[str, Any]) -> dict[str, Any]:
    """{heads, rows: [(label, cells)], warnings} of two runs: differences, second - first, with their intervals."""
    speakers = [*comparison["agents"], comparison["team"]] if comparison["team"] else []
    return {
        "heads": [*(f"agent {i}" for i in range(len(speakers) - 1)), "team"],
        "rows": [
            (label_of(key).long, [cell(speaker[key], key not in LABELS, difference=True) for speaker in speakers])
            for key in comparison["team"]
        ],
        "warnings": comparison["warnings"],
    }


def cell(metric: dict[str, Any] | None, more_is_better: bool = False, *, difference: bool = False) -> Cell:
    """{value, interval, tone: "up", "down", "clear" or ""}; for value and interval see `formatted`.

    A difference whose interval excludes zero is up or down if more is better, else clear.
    """
    value, interval = formatted(metric, difference=difference, sign="+")
    tone = ""
    if metric is not None and "difference" in metric and metric["low"] is not None and metric["high"] is not None:
        tone = "up" if metric["low"] > 0 else "down" if metric["high"] < 0 else ""
        tone = "clear" if tone and not more_is_better else tone
    return {"value": value, "interval": interval, "tone": tone}


def formatted(metric: dict[str, Any] | None, *, difference: bool = False, sign: str = "") -> tuple[str, str]:
    """("base → trained" or a mean, "[low, high]" or "" for an interval without width) of a metric.

    Args:
        difference: return trained - base instead of both values.
        sign: "+" writes the sign of a difference's interval.
    """
    if metric is None:
        return "–", ""
    paired = "difference" in metric
    low, high = metric["low"], metric["high"]
    sign = sign if paired else ""
    interval = f"[{low:{sign}.2f}, {high:{sign}.2f}]" if low is not None and high is not None and low < high else ""
    if paired and difference:
        return _number(metric["difference"], "+"), interval
    if paired:
        return f"{_number(metric['base'])} → {_number(metric['trained'])}", interval
    return _number(metric["rate"] if "rate" in metric else metric["mean"]), interval


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


def differences(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Config keys whose values differ between runs, with each run's value."""
    flat = [dict(_flat(config)) for config in configs]
    keys = sorted({key for config in flat for key in config})
    rows = [(key, [config.get(key, "–") for config in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for name, inner in value.items() for pair in _flat(inner, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list) and value:
        return [pair for place, inner in enumerate(value) for pair in _flat(inner, f"{key}.{place}")]
    return [(key, str(value))]
