"""Exact critics, exact directions and gossiped actors, against finite differences and exact gradients."""

import numpy as np
import pytest
from pydantic import ValidationError

from rlhf_marl.gridworld.chain import chain
from rlhf_marl.gridworld.diagnostics import cosine, direction, exact_state_value, exact_weights
from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.exact import policy_values, reward_table
from rlhf_marl.gridworld.exact_training import ascend
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE
from rlhf_marl.gridworld.training import Policies, _State, policy_table, train

SETTING = Setting(
    width=8, depth=2, signal="td_v", critic="exact", discount=0.9, bootstrap="reached", actor_output_scale=0.1,
    actor_step_size=0.01, iterations=1, split="closest", reward_shift=8.0, reward_scale=0.1,
)  # fmt: skip
EXACT = SETTING.model_copy(update={"direction": "exact"})


def start(draws):
    return Policies(*(a.astype(np.float32) for a in (draws.actor_h, draws.actor_w, draws.actor_b)))


def values(draws, policies):
    return policy_values(reward_table(draws.landmarks), policy_table(policies).astype(float), EPISODE)


def step(draws, policies, seed=0):
    """What one seed's actors moved by, (2, n)."""
    moved = (getattr(policies, n)[seed] - getattr(start(draws), n)[seed] for n in ("h", "w", "b"))
    return np.concatenate([part.reshape(2, -1) for part in moved], axis=1)


@pytest.mark.parametrize("bootstrap", ["reached", "redrawn", "none"])
def test_an_exact_critic_has_the_values_of_the_policies(bootstrap):
    setting = SETTING.model_copy(update={"bootstrap": bootstrap})
    draws = draw_all(setting, 0, range(2))
    state = _State(setting, draws, np.float64)
    state.refresh()
    for seed, table in enumerate(policy_table(start(draws)).astype(float)):
        paid = (reward_table(draws.landmarks[seed]) + 8) * 0.1
        expected = exact_state_value(paid, table, chain(setting))
        np.testing.assert_allclose(state.values[seed], expected, atol=2e-4)


def test_many_samples_with_an_exact_critic_point_along_the_gradient():
    setting = SETTING.model_copy(update={"actor_samples": 3000})
    draws = draw_all(setting, 0, range(1))
    moved = step(draws, train(setting, 0, range(1), [1], draws=draws).policies[0])
    table = policy_table(start(draws))[0].astype(float)
    best = direction(setting, start(draws), 0, exact_weights(reward_table(draws.landmarks[0]), table))
    assert cosine(moved, best).min() > 0.85


def test_an_exact_direction_is_the_gradient_of_the_value():
    """By central differences of J along and across the step: along it J rises by its length times the gradient's."""
    draws = draw_all(EXACT, 0, range(1))
    moved = step(draws, ascend(EXACT, draws, [1]).policies[0])
    assert np.linalg.norm(moved, axis=1) == pytest.approx(np.full(2, 0.01), rel=1e-3)
    rng = np.random.default_rng(0)
    across = rng.standard_normal(moved.shape)
    for other in (across, moved):  # orthogonal to the step of each agent
        if other is across:
            other -= (other * moved).sum(1, keepdims=True) / (moved**2).sum(1, keepdims=True) * moved
            other *= 0.01 / np.linalg.norm(other, axis=1, keepdims=True)
    rise, none = (slope(draws, towards) for towards in (moved, across))
    assert rise > 0
    assert abs(none) < 0.02 * rise


def slope(draws, towards):
    """J at the start plus `towards`, minus J at the start less it."""

    def at(sign):
        parts, i = [], 0
        for array in (draws.actor_h, draws.actor_w, draws.actor_b):
            n = array[0, 0].size
            parts.append(array + sign * towards[:, i : i + n].reshape(array.shape))
            i += n
        return values(draws, Policies(*parts))[0]

    return at(1) - at(-1)


def test_exact_ascent_learns_and_logs():
    setting = EXACT.model_copy(update={"actor_step_size": 0.05, "iterations": 30})
    draws = draw_all(setting, 0, range(2))
    history = ascend(setting, draws, [1, 30])
    np.testing.assert_allclose(history.reward[:, 1], values(draws, history.policies[1]), rtol=1e-5)
    assert (history.reward[:, 1] - values(draws, start(draws)) > 0.3).all()
    assert (history.entropy[:, 1] < history.entropy[:, 0]).all()


@pytest.mark.parametrize("run", ["sampled", "exact"])
def test_gossiped_actors_start_alike_and_meet(run):
    setting = (SETTING if run == "sampled" else EXACT).model_copy(
        update={"actors": "gossiped", "iterations": 3, "gossip_rounds": 200}
    )
    draws = draw_all(setting, 0, range(1))
    assert (draws.actor_w[:, 0] == draws.actor_w[:, 1]).all()
    draws.actor_w[:, 1] += 0.1  # the board is the same for both: exact gradients alone would keep them alike
    history = train(setting, 0, range(1), [3], draws=draws) if run == "sampled" else ascend(setting, draws, [3])
    policies = history.policies[0]
    np.testing.assert_allclose(policies.w[:, 0], policies.w[:, 1], atol=1e-6)
    assert np.abs(policies.w[0, 0] - draws.actor_w[0, 0]).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"critic": "exact"}, "critic: exact is there for two agents with signal td_v"),
        ({"critic": "exact", "signal": "td_v", "n_agents": 3}, "critic: exact is there for two agents"),
        ({"direction": "exact"}, "direction: exact needs critic exact"),
        ({"actors": "gossiped", "control": "centralised"}, "actors: gossiped needs control decentralised"),
    ],
)
def test_what_does_not_fit_together(changes, message):
    with pytest.raises(ValidationError, match=message):
        Setting(**changes)
