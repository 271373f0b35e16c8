"""Verdicts on made-up numbers."""

import numpy as np
import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.claims import CLAIMS, judge, late
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.experiments import CONTROL, EXPERIMENTS
from tests.gridworld.study.conftest import TINY, made_up


def test_late_is_the_last_fifth_of_the_points():
    """The last four of twenty points, 16 to 19; of fewer than ten, the last point alone."""
    assert late(np.stack([np.arange(20.0), -np.arange(20.0)])).tolist() == [17.5, -17.5]
    assert late(np.array([[1.0, 2, 7]])).tolist() == [7]


def test_every_claim_names_arms_that_exist():
    config = load_study("configs/study.yaml", TINY)
    for experiment in EXPERIMENTS:
        arms = settings(config, EXPERIMENTS[experiment].regime or "printed", experiment)
        fake = {label: made_up(setting, np.zeros((3, 5))) for label, setting in arms.items()}
        assert judge({"printed": {experiment: fake}})
    assert {claim.experiment for claim in CLAIMS} == set(EXPERIMENTS)


def verdicts(experiment, **arms):
    return {v.statement: v for v in judge({"r": {experiment: arms}})}


def test_verdicts_on_made_up_curves():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (50, 1))
    up = made_up(Setting(), -8 + noise + np.linspace(0, 2, 10))
    flat = made_up(Setting(), -8 + noise + np.zeros(10))
    found = verdicts("fig2", **{"TD error": up, "Q value": flat, CONTROL: flat})
    assert found["with the TD error agents learn: above the control's"].verdict == "holds"
    assert found["with the TD error agents learn: above the control's"].mean == pytest.approx(17 / 9, abs=0.05)
    assert found["the TD error beats the Q value"].verdict == "holds"
    assert found["with the Q value they do not: below the control's"].verdict == "not tested"  # equal to the control
    close = made_up(Setting(), flat.arrays["value"] + rng.normal(0, 0.01, (50, 1)))
    narrow = verdicts("fig6", **{"m = 10": flat, "m = 20": close, "m = 40": up})
    assert narrow["width matters little: m = 20 against 10"].verdict == "holds"
    assert narrow["width matters little: m = 40 against 20"].verdict == "does not hold"


def test_rate_of_a_made_up_gap():
    """A gap that falls as t^-1/2 is measured as a power of one half, and is not as fast as 1/t."""
    t = np.arange(1, 21) * 100.0
    gap = (5 + np.random.default_rng(0).normal(0, 0.5, (40, 1))) * t**-0.5
    result = made_up(Setting(), -2 - gap)
    found = verdicts("rate", **dict.fromkeys(("constant", "α / t", "α / 3t", "α / 10t"), result))
    falls = found["with α/t the gap J* - J falls"]
    assert falls.mean == pytest.approx(0.5, abs=1e-6)
    assert falls.verdict == "holds"
    assert found["... at least as fast as 1/t, step sizes α / 10t"].verdict == "does not hold"
