"""Verdicts: p-values, Holm's correction, symmetric rules, and claims that a regime does not test."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.claims import CLAIMS, holm, judge, p_values
from rlhf_marl.gridworld.study.experiments import CONTROL
from rlhf_marl.gridworld.study.results import Result


def test_holm_by_hand():
    """Holm 1979: of 0.01, 0.04, 0.03, 0.005 the factors are 3, 1, 2, 4; 0.04 is raised to the 0.06 before it."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.7, 0.8])).tolist() == [1, 1]
    np.testing.assert_allclose(holm(np.array([0.02, np.nan, 0.03])), [0.04, np.nan, 0.04])  # what is not tested


def test_p_values_are_those_of_the_paired_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 30)
    above, below = p_values("more", values, 0.1)
    assert above == pytest.approx(ttest_1samp(values, 0.1).pvalue)
    assert above == pytest.approx(2 * ttest_1samp(values, 0.1, alternative="greater").pvalue)
    assert below == 1
    inside, beyond = p_values("same", values, 0.1)
    assert inside == 1
    assert beyond == pytest.approx(above)


@pytest.mark.parametrize(
    ("kind", "mean", "expected"),
    [
        # The half width of the interval is 0.1, the negligible zone ±0.1.
        ("more", 0.25, "holds"),
        ("more", 0.15, "undetermined"),  # above 0, but not clearly more than negligible
        ("more", 0.0, "undetermined"),
        ("more", -0.05, "does not hold"),  # clearly no more than negligible
        ("more", -0.5, "does not hold"),
        ("same", 0.0, "undetermined"),  # the interval fills the zone
        ("same", 0.25, "does not hold"),
        ("same", -0.25, "does not hold"),
        ("same", 0.15, "undetermined"),
    ],
)
def test_rules_of_the_verdict(kind, mean, expected):
    """A single claim, so Holm's correction changes nothing: the verdicts are those of the 95% interval."""
    assert word(kind, mean, half_width=0.1001, negligible=0.1) == expected
    if kind == "same" and mean == 0:
        assert word(kind, mean, half_width=0.09, negligible=0.1) == "holds"


def word(kind, mean, half_width, negligible):
    t_975 = 2.0930  # Student's quantile of 19 degrees of freedom
    unit = np.tile([-1.0, 1.0], 10)
    values = mean + unit * half_width / (t_975 * unit.std(ddof=1) / 20**0.5)
    p_for, p_against = p_values(kind, values, negligible)
    if min(p_for, p_against) >= 0.05:
        return "undetermined"
    return "holds" if p_for < p_against else "does not hold"


def test_a_difference_without_spread():
    assert p_values("same", np.zeros(5), 0.1) == (0, 1)
    assert p_values("more", np.zeros(5), 0.1) == (1, 0)
    assert p_values("more", np.ones(5), 0.1) == (0, 1)


def test_more_claims_need_more_evidence():
    """p = 0.035 holds as the only claim, and is undetermined next to a second."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 40)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    weak = 0.12 + noise + 2.183 / 40**0.5  # 2.183: t of p = 0.035 with 39 degrees of freedom, above negligible 0.12
    flat = np.zeros(40)
    arms = {"deep": made_up(weak), "linear": made_up(flat)}
    (alone,) = judge({"r": {"critic": arms}})
    assert alone.p == pytest.approx(0.035, abs=1e-3)
    assert alone.verdict == "holds"
    pairs = {"TD error": made_up(weak), "Q value": made_up(rng.normal(0, 30, 40)), CONTROL: made_up(flat)}
    found = {v.statement: v for v in judge({"r": {"critic": arms, "fig2": pairs}})}
    assert found["a deep critic beats a linear one"].p > 0.05
    assert found["a deep critic beats a linear one"].verdict == "undetermined"
    assert found["a deep critic beats a linear one"].low == alone.low  # intervals are not corrected


def test_what_a_regime_does_not_touch_is_not_tested():
    flat, other = np.zeros(6), np.arange(6.0)
    averaged, half_way = np.full((2, 2), 0.5), np.array([[0.75, 0.25], [0.25, 0.75]])
    rounds = {"0 rounds": (other, np.eye(2)), "10 rounds": (flat, averaged), "20 rounds": (other, averaged + 1e-4)}
    arms = {name: made_up(value, power) for name, (value, power) in rounds.items()}
    found = {v.statement: v for v in judge({"r": {"fig5": arms}})}
    assert found["20 rounds beat 10"].verdict == "not tested"  # ten rounds average already
    assert np.isnan(found["20 rounds beat 10"].p)
    assert found["20 rounds beat 10"].as_json()["mean"] is None
    assert found["10 rounds of gossip beat none"].verdict != "not tested"
    arms["10 rounds"] = made_up(flat, half_way)
    assert {v.statement: v.verdict for v in judge({"r": {"fig5": arms}})}["20 rounds beat 10"] != "not tested"
    equal = {"deep": made_up(other), "linear": made_up(other)}
    assert judge({"r": {"critic": equal}})[0].verdict == "not tested"


def test_gossip_of_one_critic_step_is_the_average_by_construction():
    for steps, expected in ((1, "not tested"), (20, "does not hold")):
        arms = {
            name: made_up(value, np.full((2, 2), 0.5), critic_steps=steps)
            for name, value in (("decentralised", np.arange(6.0)), ("centralised", np.zeros(6)))
        }
        assert judge({"r": {"centralised": arms}})[0].verdict == expected


def test_a_claim_without_its_baseline_is_not_tested():
    """Of more agents than all constant joint actions are tried for."""
    arms = {name: made_up(np.arange(3.0)) for name in ("TD error", "Q value", CONTROL)}
    del arms["TD error"].arrays["constant"]
    verdicts = {v.statement: v.verdict for v in judge({"r": {"fig2": arms}})}
    assert verdicts["with the TD error agents use the state: they beat the best constant action"] == "not tested"


def test_no_two_claims_compare_the_same_settings():
    """Two claims of equal numbers would count twice."""
    rng = np.random.default_rng(0)
    curves: dict[object, Result] = {}
    differences = []
    for claim in CLAIMS:
        arms = Arms(claim.experiment, curves, rng)
        found = claim.difference(arms)
        assert found is not None
        differences.append((claim.statement, found))
    for i, (first, a) in enumerate(differences):
        for second, b in differences[:i]:
            assert not np.allclose(np.abs(a), np.abs(b)), (first, second)


class Arms(dict):
    """Arms of an experiment under `working`; a setting has one result, whatever experiment it is in."""

    def __init__(self, experiment, curves, rng):
        from rlhf_marl.gridworld.study.config import load_study, settings

        for label, setting in settings(load_study("configs/study.yaml"), "working", experiment).items():
            if setting not in curves:
                power = np.eye(setting.n_agents) * (1 + setting.gossip_rounds)
                curves[setting] = made_up(rng.normal(-5, 1, 4), power, setting)
            self[label] = curves[setting]


def made_up(outcome, power=None, setting=None, **changes):
    """A result whose curve is flat at each seed's outcome. The way from random to best is 6, so 0.12 is negligible."""
    setting = setting or Setting(**changes)
    seeds = len(outcome)
    value = np.repeat(np.asarray(outcome, float)[:, None], 5, axis=1) + np.zeros(5)
    if setting.actor_schedule == "inverse":
        value = -8 + value * np.arange(1.0, 6) ** 0.1 / 10
    levels = {"random": -8.0, "start": -8.0, "constant": -7.0, "optimum": -2.0, "bound": -1.5}
    arrays = {name: np.full(seeds, level) for name, level in levels.items()}
    power = np.eye(setting.n_agents) if power is None else power
    arrays |= {"value": value, "reward": value, "points": np.arange(1.0, 6), "power": np.tile(power, (seeds, 1, 1))}
    return Result(setting, arrays, 1.0)
