"""The early stop by hand, and damaged validations."""

import pytest

from rlhf_marl.runs.validations import Validated, best_of, early_stop, ended_early


def made(*pairs):
    """(team, reward) of the validations after 0, 5, 10, ... iterations."""
    return [Validated(5 * place, team, reward) for place, (team, reward) in enumerate(pairs)]


def test_training_ends_where_held_out_falls_while_the_reward_rises():
    validations = made((0.1, 0.0), (0.3, 1.0), (0.2, 1.5), (0.25, 2.0))
    assert early_stop(validations, 2) == (
        "training ended early after 15 iterations: the training reward rose from +1.000 to +2.000, but the team's "
        "answers to the held-out questions did not improve in the last 2 validations (best +0.300 after 5 iterations, "
        "now +0.250)"
    )
    assert early_stop(validations, 3) is None
    assert early_stop(validations, None) is None
    assert early_stop(validations[:3], 2) is None


def test_it_goes_on_where_the_reward_did_not_rise_or_held_out_improved():
    assert early_stop(made((0.1, 0.0), (0.3, 1.0), (0.2, 1.5), (0.25, 1.0)), 2) is None
    assert early_stop(made((0.1, 0.0), (0.3, 1.0), (0.2, 1.5), (0.31, 2.0)), 1) is None


def test_if_the_start_was_best_the_first_reward_measured_is_compared():
    assert early_stop(made((0.5, 0.0), (0.3, 1.0)), 1) is None
    assert "rose from +1.000 to +1.500" in early_stop(made((0.5, 0.0), (0.3, 1.0), (0.3, 1.5)), 2)


def test_the_earliest_of_equals_is_the_best():
    assert best_of(made((0.1, 0.0), (0.3, 1.0), (0.3, 2.0))) == 1


def test_a_run_that_was_continued_did_not_end_early():
    rows = [{"iteration": 5, "early_stop": None}, {"iteration": 10, "early_stop": "because"}]
    assert ended_early(rows, 10) == "because"
    assert ended_early(rows, 12) is None
    assert ended_early([], 0) is None


@pytest.mark.parametrize("bad", [{"team": "0.5"}, {"team": float("nan")}, {"reward": None}, {"reward": 10**400}])
def test_damaged_validations_are_refused(bad):
    good = {"iteration": 5, "team": 0.5, "reward": 0.25, "ended": False}
    assert Validated.of(good) == Validated(5, 0.5, 0.25)
    with pytest.raises(ValueError, match="not finite numbers"):
        Validated.of(good | bad)


def test_a_checkpoint_of_before_may_have_ended_training():
    """It does not say so; whether it did, follows from its validations."""
    assert Validated.of({"iteration": 5, "team": 0.5, "reward": 0.25}).ended
