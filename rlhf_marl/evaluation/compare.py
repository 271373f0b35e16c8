"""Paired comparison of two runs' trained agents on the questions that both answered."""

from collections.abc import Sequence
from typing import Any

from rlhf_marl.evaluation.files import Evaluation
from rlhf_marl.evaluation.summary import TEAM, Row, metric, score_of, text_metrics

_SAME_QUESTIONS = ("turns", "seed", "max_new_tokens", "temperature")
_POLICIES = ("base", "trained")


def compare(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Metrics per agent and for the team, with the first run's trained agents as base.

    Returns:
        {"agents": [{judge or metric: METRIC}], "team": {...}, "warnings": [texts]}. Only judges with the same card in
        both runs count. Agent i is compared with agent i.
    """
    warnings = [
        f"{key} differs: {first.numbers['settings'][key]} and {second.numbers['settings'][key]}"
        for key in _SAME_QUESTIONS
        if first.numbers["settings"][key] != second.numbers["settings"][key]
    ]
    cards = first.numbers["settings"]["judges"].items() & second.numbers["settings"]["judges"].items()
    names = [name for name in first.numbers["settings"]["judges"] if name in dict(cards)]
    if not names:
        warnings.append("the runs were judged by different reward models; only text metrics are compared")
    rows = _paired_rows(first.rows, second.rows)
    if not rows:
        return {"agents": [], "team": {}, "warnings": [*warnings, "the runs have no questions in common"]}

    def speaker_metrics(speaker: int) -> dict[str, Any]:
        return {name: metric(rows, score_of(name, speaker)) for name in names} | text_metrics(rows, speaker)

    n_agents = min(len(row["responses"]) for row in rows)
    numbers = [len(evaluation.numbers["agents"]) for evaluation in (first, second)]
    if numbers[0] != numbers[1]:
        warnings.append(f"the runs have {numbers[0]} and {numbers[1]} agents; the first {n_agents} are compared")
    return {
        "agents": [speaker_metrics(agent) for agent in range(n_agents)],
        "team": speaker_metrics(TEAM),
        "warnings": warnings,
    }


def _paired_rows(first: Sequence[Row], second: Sequence[Row]) -> list[Row]:
    """Trained rows of both runs on their common questions; the first run's get policy base."""
    rows = [row | {"policy": "base"} for row in first if row["policy"] == "trained"]
    rows += [row for row in second if row["policy"] == "trained"]
    asked = [{(row["question"], row["turn"]) for row in rows if row["policy"] == policy} for policy in _POLICIES]
    return [row for row in rows if (row["question"], row["turn"]) in asked[0] & asked[1]]
