"""evaluation.json as text for tables; pure functions."""

from typing import Any

ROWS = {
    "own_reward": "own reward",
    "held_out_reward": "held-out judges",
    "win_rate": "win rate against base",
    "refusal_harmful": "refuses harmful requests",
    "refusal_harmless": "refuses harmless ones",
    "kl_to_base": "KL to base (nats a token)",
    "entropy": "entropy (nats a token)",
    "length": "tokens an answer",
    "truncated": "cut at the limit",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_repetition": "repeats itself",
}
_MORE_IS_BETTER = {"own_reward", "held_out_reward"}
Cell = dict[str, str]


def held_out(evaluation: dict[str, Any]) -> dict[str, Any]:
    """{heads, rows: [(label, cells)], verdicts, ...} of a whole evaluation."""
    speakers = [*evaluation["agents"], evaluation["team"]]
    heads = [(f"agent {agent['agent']}", str(agent["reward_model"])) for agent in evaluation["agents"]]
    rows = [
        (label, [cell(speaker.get(key), key in _MORE_IS_BETTER) for speaker in speakers]) for key, label in ROWS.items()
    ]
    return {
        "heads": [*heads, ("team", "aggregated answer")],
        "rows": rows,
        "verdicts": [
            (f"Agent {agent['agent']}", str(agent["reward_model"]), str(agent["verdict"]))
            for agent in evaluation["agents"]
        ],
        "agreement": cell(evaluation["agreement"]),
        "fallbacks": cell(evaluation["controller_fallbacks"]),
        "single": [
            (label, cell(metric, True))
            for key, label in list(ROWS.items())[:2]
            if (metric := (evaluation["team"].get("against_single") or {}).get(key)) is not None
        ],
        "questions": str(evaluation["settings"]["n_questions"]),
        "judge": str((evaluation["team"].get("win_rate") or {}).get("judge", "")),
        "warnings": [str(words) for words in evaluation["warnings"]],
    }


def cross_rewards(cross: dict[str, Any]) -> dict[str, Any]:
    """{judges: [(name, held out?)], rows: [(name, cells)]}: differences trained - base with their intervals."""
    judges = [(str(judge["name"]), not judge["trained_agents"]) for judge in cross["judges"]]
    rows = []
    for i, name in enumerate(cross["rows"]):
        metrics = [{key: cross[key][i][j] for key in ("difference", "low", "high")} for j in range(len(judges))]
        own = [i in judge["trained_agents"] for judge in cross["judges"]]
        cells = [{**cell(metric, True), "own": "*" if mine else ""} for metric, mine in zip(metrics, own, strict=True)]
        rows.append((str(name), cells))
    return {"judges": judges, "rows": rows}


def compared(comparison: dict[str, Any]) -> dict[str, Any]:
    """{heads, rows: [(label, cells)], warnings} of two runs: differences, second - first, with their intervals."""
    speakers = [*comparison["agents"], comparison["team"]] if comparison["team"] else []
    shown = ("difference", "low", "high")
    rows = []
    for key in comparison["team"]:
        metrics = [speaker[key] for speaker in speakers]
        cells = [cell(m and {part: m[part] for part in shown}, key not in ROWS) for m in metrics]
        rows.append((ROWS.get(key, f"judge {key}"), cells))
    return {
        "heads": [*(f"agent {i}" for i in range(len(speakers) - 1)), "team"],
        "rows": rows,
        "warnings": comparison["warnings"],
    }


def cell(metric: dict[str, Any] | None, more_is_better: bool = False) -> Cell:
    """{value: "base → trained" or a mean, interval: "[low, high]" or "", tone: "up", "down", "clear" or ""}.

    A difference whose interval excludes zero is up or down where that is good or bad, else clear.
    """
    if metric is None:
        return {"value": "–", "interval": "", "tone": ""}
    low, high = metric.get("low"), metric.get("high")
    wide = low is not None and high is not None and low < high
    interval = f"[{low:+.2f}, {high:+.2f}]" if wide and "difference" in metric else ""
    if wide and "difference" not in metric:
        interval = f"[{low:.2f}, {high:.2f}]"
    tone = ""
    if "difference" in metric and low is not None and high is not None:
        tone = "up" if low > 0 else "down" if high < 0 else ""
        tone = "clear" if tone and not more_is_better else tone
    if "base" in metric:
        value = f"{_text(metric['base'])} → {_text(metric['trained'])}"
    elif "difference" in metric:
        value = "–" if metric["difference"] is None else f"{metric['difference']:+.2f}"
    else:
        value = _text(metric.get("rate", metric.get("mean")))
    return {"value": value, "interval": interval, "tone": tone}


def differences(configs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys in which the runs' configs differ, and each run's value."""
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


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
