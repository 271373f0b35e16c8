"""Summaries of the numbers in metrics.jsonl."""

from collections.abc import Sequence
from typing import Any


def first_and_last_fifth(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the first and over the last fifth of a series (at least one value each)."""
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def is_finite(value: Any) -> bool:
    """Whether a value read from a file is a number that float arithmetic can hold."""
    return isinstance(value, int | float) and abs(value) < 1e300
