"""Summaries of the numbers in metrics.jsonl and dialogues.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr

VALUE_CORRELATION = "Critics: correlation of values with returns, second half of the run: {:+.2f} [{:+.2f}, {:+.2f}]."


def first_and_last_fifth(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the first and over the last fifth of a series (at least one value each)."""
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def value_correlation(turns: Sequence[Mapping[str, Any]], discount: float) -> tuple[float, float, float] | None:
    """Correlation of the critics' values with the team's returns, and its 95% interval: (correlation, low, high).

    Over the turns of the run's second half. A turn's value is the mean over agents of the critics' values before they
    learned from it; its return is Σ_l γ^l of the team's mean scaled reward from this turn on. The mean of each turn
    number is subtracted, since later turns have fewer rewards to come. None if there are too few turns, or if values
    or returns do not vary.

    turns: rows of dialogues.jsonl.
    """
    turns = [
        row for row in turns if all(any(map(is_finite, row[key] or ())) for key in ("critic_value", "reward_scaled"))
    ]
    dialogues: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for turn in sorted(turns, key=lambda row: row["turn"]):
        dialogues.setdefault((turn["iteration"], turn["dialogue"]), []).append(turn)
    found: dict[int, list[tuple[float, float]]] = {}
    for key in sorted(dialogues)[len(dialogues) // 2 :]:
        following = 0.0
        for turn in reversed(dialogues[key]):
            following = _mean(turn["reward_scaled"]) + discount * following
            found.setdefault(turn["turn"], []).append((_mean(turn["critic_value"]), following))
    pairs = np.concatenate([np.array(of_turn) - np.mean(of_turn, axis=0) for of_turn in found.values()] or [[]])
    if len(pairs) < 4 or (np.ptp(pairs, axis=0) < 1e-9).any():
        return None
    result = pearsonr(pairs[:, 0], pairs[:, 1])
    low, high = result.confidence_interval()
    return float(result.statistic), float(low), float(high)


def before_and_after(turns: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """One question's first turn, early and late in training: of the question asked again after the most iterations.

    None if no question was asked in two iterations.

    turns: as for `value_correlation`, of one run.
    """
    firsts: dict[str, list[Mapping[str, Any]]] = {}
    for turn in turns:
        if turn["turn"] == 0:
            firsts.setdefault(turn["prompt"], []).append(turn)
    pairs = [(min(asked, key=_when), max(asked, key=_when)) for asked in firsts.values()]
    early, late = max(pairs, key=lambda pair: pair[1]["iteration"] - pair[0]["iteration"], default=(None, None))
    if early is None or late is None or early["iteration"] == late["iteration"]:
        return None
    return early, late


def _when(turn: Mapping[str, Any]) -> tuple[int, int]:
    return turn["iteration"], turn["dialogue"]


def _mean(values: Sequence[float | None]) -> float:
    """Over the agents that were there."""
    return float(np.mean([value for value in values if value is not None]))


def is_finite(value: Any) -> bool:
    """Whether a value read from a file is a number that float arithmetic can hold."""
    return isinstance(value, int | float) and abs(value) < 1e300
