from dataclasses import fields

import numpy as np
import pytest

from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.exact import policy_values, reward_table
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.training import Policies, policy_table, train

TINY = Setting(width=5, depth=2, signal="td_v", actor_output_scale=0.1)


def assert_same(one, other, rows=slice(None)):
    """Two histories' figures and last weights; rows of the first one."""
    for name in ("reward", "value", "positive", "entropy", "disagreement_before", "dead"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one.policies[-1].w[rows], other.policies[-1].w)
    np.testing.assert_array_equal(one.critics.w[rows], other.critics.w)


def test_a_seed_does_not_depend_on_its_company_nor_on_the_points():
    together = train(TINY, 1, range(4), [50, 200])
    assert_same(together, train(TINY, 1, range(2, 3), [50, 200]), slice(2, 3))
    again = train(TINY, 1, range(4), [20, 50, 120, 200])
    np.testing.assert_array_equal(together.policies[-1].w, again.policies[-1].w)
    assert not np.array_equal(together.policies[-1].w, train(TINY, 2, range(4), [50, 200]).policies[-1].w)


def test_settings_share_what_a_seed_decides():
    one, other = draw_all(TINY, 1, range(3)), draw_all(TINY.model_copy(update={"depth": 4}), 1, range(3))
    for name in ("landmarks", "matrix", "positions", "actor_h", "critic_h"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert len({row.tobytes() for row in one.landmarks}) == 3


def test_a_policy_table_by_hand():
    """Policies whose only weights are those of the bias-like constant prefer one action, wherever everyone is."""
    w = np.zeros((1, 2, 1, 2, 2))
    w[..., 0, 0] = w[..., 1, 1] = 1
    h = np.zeros((1, 2, 5, 2))
    h[:, :, 4, 0] = 1  # the constant
    b = np.zeros((1, 2, 5, 2))
    b[0, 0, 3, 0], b[0, 1, 1, 0] = 500, 500
    table = policy_table(Policies(h, w, b))[0]
    np.testing.assert_allclose(table[0][..., 3], 1)
    np.testing.assert_allclose(table[1][..., 1], 1)
    rewards = reward_table(np.array([[62, 30], [2, 34]]))  # landmarks at the right and below, at the left and above
    ahead, behind = policy_values(rewards, np.stack([table, table]), 10)
    assert ahead > behind


def test_learning_beats_chance():
    """A state-value critic on centred rewards: the policies' exact value, mean of four seeds."""
    setting = Setting(
        signal="td_v",
        critic_steps=5,
        actor_samples=5,
        iterations=1000,
        start="warm",
        discount=0.9,
        bootstrap="reached",
        reward_shift=8.0,
        reward_scale=0.1,
        actor_output_scale=0.1,
        actor_step_size=0.05,
        critic_step_size=0.01,
    )
    draws = draw_all(setting, 0, range(4))
    history = train(setting, 0, range(4), [1, 1000], draws=draws)
    rewards = reward_table(draws.landmarks)
    first, last = (policy_values(rewards, policy_table(p).astype(float), 10).mean() for p in history.policies)
    assert last > first + 0.5


def test_a_diverging_critic_is_counted_not_hidden():
    history = train(
        TINY.model_copy(update={"critic_step_size": 1e6, "radius": None, "start": "warm"}), 0, range(2), [300]
    )
    assert history.skipped.sum() > 0
    assert np.isfinite(history.policies[-1].w).all()


def test_dead_actors_are_counted_and_stay_dead():
    """Agent 0's hidden layers are put to zero: no unit is on anywhere, and no gradient brings one back."""
    draws = draw_all(TINY, 0, range(2))
    draws.actor_w[:, 0] = 0
    history = train(TINY, 0, range(2), [1, 100], draws=draws)
    np.testing.assert_array_equal(history.dead_actors, 0.5)
    np.testing.assert_array_equal(history.policies[-1].w[:, 0], 0)
    assert policy_table(history.policies[-1])[:, 0] == pytest.approx(0.2)


def test_when_decentralised_critics_equal_algorithm_3():
    """Where all are paid the same; and for K = 1 wherever gossip averages exactly: the gradient is linear in r."""
    quick = TINY.model_copy(update={"yardstick": True, "start": "warm", "critic_step_size": 0.01})

    def distance(**changes):
        return train(quick.model_copy(update=changes), 0, range(2), [100], dtype=np.float64).distance

    assert distance(critic_steps=5).max() < 1e-9
    assert distance(split="closest", gossip_rounds=200).max() < 1e-9
    assert distance(split="closest", gossip_rounds=200, critic_steps=5).min() > 1e-6
    assert distance(split="closest", gossip_rounds=0).min() > 1e-6
    assert np.isnan(train(TINY, 0, range(1), [1]).distance).all()


def test_gossip_makes_critics_agree():
    setting = TINY.model_copy(update={"split": "closest"})
    history = train(setting, 0, range(2), [100])
    assert (history.disagreement_after < 1e-2 * history.disagreement_before).all()
    alone = train(setting.model_copy(update={"gossip_rounds": 0}), 0, range(2), [100])
    np.testing.assert_allclose(alone.disagreement_after, alone.disagreement_before, rtol=1e-5)


def test_progress_counts_all_iterations():
    seen = []
    train(TINY.model_copy(update={"critic_steps": 30}), 0, range(1), [10, 150], progress=seen.append)
    assert sum(seen) == 150
    assert len(seen) > 2


def test_history_is_finite():
    history = train(TINY, 0, range(2), [5, 10])
    for field in fields(history):
        value = getattr(history, field.name)
        if isinstance(value, np.ndarray) and field.name != "distance":
            assert np.isfinite(value).all(), field.name
            assert value.shape == ((2, 2) if field.name != "points" else (2,))


def test_nearly_deterministic_policies_take_whole_steps():
    """With logits hundreds apart 1 - π(a) is 0 in float32; line 17's step has length α all the same."""
    setting = Setting(actor_output_scale=300.0, actor_step_size=0.5, signal="td_q")
    draws = draw_all(setting, 1, range(3))
    before = Policies(draws.actor_h, draws.actor_w, draws.actor_b)
    after = train(setting, 1, range(3), [1], draws=draws).policies[0]
    assert np.median(policy_table(before).max(-1)) > 1 - 1e-9
    squares = sum(((getattr(after, part) - getattr(before, part)).reshape(3, 2, -1) ** 2).sum(-1) for part in "hwb")
    np.testing.assert_allclose(squares**0.5, 0.5, rtol=1e-3)
