"""Intervals: hand-worked means, degenerate samples, and coverage of a known difference in simulated evaluations."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlhf_marl.evaluation import statistics
from rlhf_marl.evaluation.statistics import direction, interval, over_seeds, paired

SPEC = importlib.util.spec_from_file_location(
    "coverage_benchmark", Path(__file__).parents[2] / "benchmarks/intervals.py"
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


def test_paired_gives_means_and_the_difference_by_hand():
    metric = paired([0.0, 1.0, 2.0], [1.0, 1.0, 4.0])
    assert (metric["base"], metric["trained"], metric["difference"], metric["n"]) == (1.0, 2.0, 1.0, 3)
    assert metric["low"] <= 1.0 <= metric["high"]


def test_pairing_removes_differences_between_questions():
    """Base and trained differ by exactly 0.1 on questions whose rewards spread over ±10."""
    base = np.random.default_rng(0).uniform(-10, 10, size=40)
    metric = paired(base, base + 0.1)
    assert metric["low"] == pytest.approx(0.1)
    assert metric["high"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5] * 8, (0.5, 0.5)), ([3.0], (None, None)), ([], (None, None)), ([0.0] * 63, (0.0, 0.0))],
)
def test_samples_without_variance_or_size(values, expected):
    assert interval(values) == expected


@pytest.mark.parametrize("rest", [[1.0], [-1.0], [0.5, 0.5], [1e-9]])
def test_nearly_equal_values_give_a_finite_interval_around_the_mean(rest):
    """A model that refuses one of 30 questions; a warning would fail the test."""
    values = [0.0] * 29 + rest
    low, high = interval(values)
    assert np.isfinite([low, high]).all()
    assert low <= np.mean(values) <= high


def test_the_same_values_give_the_same_interval():
    values = np.random.default_rng(3).normal(size=20)
    assert interval(values) == interval(values)


@pytest.mark.parametrize("kind", benchmark.KINDS)
def test_intervals_cover_a_known_difference(kind, monkeypatch):
    """300 evaluations of 60 questions whose true difference is known: 95% intervals hold it in 88% to 98%.

    Chance moves the share of 300 by ±2.5% (two standard errors).
    """
    monkeypatch.setattr(statistics, "RESAMPLES", benchmark.RESAMPLES)
    assert 0.88 <= benchmark.coverage(kind, 60, 300) <= 0.98


def test_ten_skewed_differences_are_covered_less_often_than_promised(monkeypatch):
    """docs/evaluation.md warns of it; intervals that no longer fall short would make the warning wrong."""
    monkeypatch.setattr(statistics, "RESAMPLES", benchmark.RESAMPLES)
    assert 0.82 <= benchmark.coverage("lognormal", 10, 300) <= 0.91


@pytest.mark.parametrize(("kind", "skewness"), [("symmetric", 0.0), ("exponential", 2.0), ("lognormal", 6.18)])
def test_the_simulated_differences_have_mean_zero_and_the_skewness_they_are_named_for(kind, skewness):
    values = benchmark.DIFFERENCES[kind](np.random.default_rng(0), 4_000_000)
    assert values.mean() == pytest.approx(0, abs=0.005)
    assert stats.skew(values) == pytest.approx(skewness, rel=0.15, abs=0.05)


def test_questions_must_match_and_none_give_no_metric():
    assert paired([], []) is None
    assert direction(None) == 0
    assert direction(paired([1.0], [2.0])) == 0
    assert direction(paired([1.0, 1.0], [2.0, 2.0])) == 1
    with pytest.raises(ValueError, match="2 base values for 1 trained"):
        paired([1.0, 2.0], [1.0])


def test_an_interval_over_seeds_by_hand():
    """Of 1, 2, 3: mean 2, half width t(0.975, 2) / sqrt(3) = 4.30265 / 1.73205."""
    assert over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_an_interval_of_one_seed_is_unknown():
    mean, low, high = over_seeds([5.0])
    assert mean == 5
    assert np.isnan([low, high]).all()
