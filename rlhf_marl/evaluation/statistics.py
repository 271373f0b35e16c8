"""Intervals: paired bootstrap over questions, with all their turns; Student's over seeds."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
Metric = dict[str, Any]


def interval(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> tuple[float | None, ...]:
    """(low, high) of the mean by bootstrap: BCa, or percentile where BCa is not defined.

    The bootstrap of n values underestimates their spread by √((n-1)/n) and treats it as known. The level is widened to
    that of Student's t, as Hesterberg (2015, The American Statistician 69:371) does for percentile intervals.

    (None, None) for fewer than two values; (v, v) if all values are v.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return None, None
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    n = len(sample)
    wide = 2 * stats.norm.cdf(stats.t.ppf((1 + confidence) / 2, n - 1) * math.sqrt(n / (n - 1))) - 1
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # With few, mostly equal values BCa is undefined: scipy warns and returns nan.
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (sample,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=wide,
                method=method,
                rng=np.random.default_rng(seed),
                batch=500,
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    return float(found.low), float(found.high)


def over_seeds(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and Student's 95% interval; (mean, NaN, NaN) for fewer than two seeds."""
    sample = np.asarray(values, dtype=float)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * sample.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def paired(base: Sequence[float], trained: Sequence[float]) -> Metric | None:
    """Means over questions and the interval of the paired difference trained - base; None without questions."""
    if len(base) != len(trained):
        raise ValueError(f"{len(base)} base values for {len(trained)} trained ones")
    if len(base) == 0:
        return None
    difference = np.asarray(trained, dtype=float) - np.asarray(base, dtype=float)
    low, high = interval(difference.tolist())
    return {
        "base": float(np.mean(base)),
        "trained": float(np.mean(trained)),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "n": len(difference),
    }


def direction(metric: Metric | None) -> int:
    """+1 or -1 where the interval of the difference excludes 0, else 0."""
    if metric is None or metric["low"] is None:
        return 0
    return int(metric["low"] > 0) - int(metric["high"] < 0)
