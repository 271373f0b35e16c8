"""The compiled form equals the readable one under every option."""

import numpy as np
import pytest

from rlhf_marl.gridworld.draws import Noise, draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.training import train
from tests.gridworld.reference import Reference

SEEDS = range(2)
STEPS = {"iterations": 60, "width": 6, "depth": 2, "radius": 0.5, "critic_step_size": 0.01, "start": "warm"}

OPTIONS = {
    "as_printed": {"start": "restart", "radius": 10.0},
    "td_q": {"signal": "td_q"},
    "td_v": {"signal": "td_v"},
    "td_v_local_credit": {"signal": "td_v", "credit": "local", "split": "closest"},
    "td_q_local_credit": {"signal": "td_q_literal", "credit": "local", "split": "closest", "gossip_rounds": 1},
    "q_value": {"signal": "q_value", "split": "closest"},
    "counterfactual": {"signal": "counterfactual", "split": "closest", "gossip_rounds": 0},
    "counterfactual_with_yardstick": {"signal": "counterfactual", "yardstick": True},
    "counterfactual_centralised": {"signal": "counterfactual", "control": "centralised"},
    "four_agents": {"n_agents": 4, "split": "closest", "graph": "ring", "matrix": "metropolis_hastings"},
    "three_agents_lazy": {"n_agents": 3, "signal": "td_v", "laziness": 0.9, "gossip_rounds": 3},
    "four_agents_owned": {"n_agents": 4, "split": "owned", "signal": "td_v", "gossip_rounds": 2},
    "many_samples": {"critic_steps": 5, "actor_samples": 3, "signal": "td_v"},
    "many_critic_steps": {"critic_steps": 4, "split": "closest", "gossip_rounds": 1},
    "many_samples_restarted": {"critic_steps": 3, "actor_samples": 4, "start": "restart"},
    "last_iterate": {"critic_steps": 3, "average": False},
    "no_ball": {"radius": None},
    "outside_the_ball": {"radius": 0.02, "critic_steps": 3, "split": "closest"},
    "yardstick": {"yardstick": True, "split": "closest", "gossip_rounds": 2, "critic_steps": 2},
    "centralised": {"control": "centralised", "split": "closest", "signal": "td_v"},
    "linear": {"critic": "linear", "critic_step_size": 0.3, "split": "closest"},
    "linear_v": {"critic": "linear", "signal": "td_v", "critic_steps": 3, "yardstick": True, "radius": 5.0},
    "linear_no_ball": {"critic": "linear", "radius": None, "control": "centralised"},
    "restart_kernel": {"reset": "restart_kernel", "discount": 0.8, "signal": "td_v"},
    "actors_gossiped": {"actors": "gossiped", "split": "closest", "gossip_rounds": 1, "yardstick": True},
    "reached": {"bootstrap": "reached"},
    "terminal": {"bootstrap": "none", "actor_samples": 2, "signal": "td_v"},
    "inverse": {"actor_schedule": "inverse", "actor_step_size": 1.0, "actor_output_scale": 0.1},
    "scaled": {"reward_shift": 8.0, "reward_scale": 0.1, "critic_output_scale": 0.2},
    "wide": {"width": 17, "iterations": 20},
    "deep": {"depth": 7, "iterations": 20},
}  # fmt: skip


def reference(setting):
    draws = draw_all(setting, 5, SEEDS)
    one = Reference(setting, draws)
    noise = [Noise(5, seed, setting.n_agents) for seed in SEEDS]
    for _ in range(setting.iterations):
        uniforms, redrawn = (
            np.stack(p) for p in zip(*(n.take(setting.steps_per_iteration) for n in noise), strict=True)
        )
        one.iterate(uniforms, redrawn)
    return one


@pytest.mark.parametrize("name", OPTIONS)
def test_the_compiled_form_equals_the_readable_one(name):
    """Same weights and log after a run in float64, so the same actions all along."""
    setting = Setting(**(STEPS | OPTIONS[name]))
    slow = reference(setting)
    fast = train(setting, 5, SEEDS, [7, setting.iterations], dtype=np.float64)

    h, w, b = (part.numpy() for part in slow.actors.split(slow.actors.parameters))
    policies = fast.policies[-1]
    for readable, compiled in ((h, policies.h), (w, policies.w), (b, policies.b)):
        np.testing.assert_allclose(compiled, readable, rtol=1e-7, atol=1e-8)
    critics = fast.critics.w.reshape(*fast.critics.w.shape[:2], -1)
    np.testing.assert_allclose(critics, slow.critic.weights.numpy(), rtol=1e-7, atol=1e-8)
    for what in ("reward", "value", "positive", "entropy", "projected"):
        rows = np.stack(getattr(slow.trace, what), axis=1)
        expected = np.stack([rows[:, :7].mean(1), rows[:, 7:].mean(1)], axis=1)
        # A layer on the edge of the ball is outside or not by rounding alone.
        slack = 0.01 if what == "projected" else 1e-8
        np.testing.assert_allclose(getattr(fast, what), expected, rtol=1e-6, atol=slack, err_msg=what)
    assert np.ptp(fast.policies[-1].w - fast.policies[0].w) > 1e-3  # the run moved


def test_an_iteration_by_hand():
    """One agent stays at (0, 0), 3 away from its landmark at (2, 1); a linear critic learns V from w = 0.

    w ← 0 + β r x = 0.1 * -3 * (-1, -1, 1) / √3, of which line 9's average of w(0) and w(1) keeps a half: V = -0.15.
    The TD error r + γ V - V is negative. The actor's step has length α.
    """
    setting = Setting(
        n_agents=1,
        critic="linear",
        critic_step_size=0.1,
        signal="td_v",
        width=1,
        depth=1,
        actor_step_size=0.5,
        iterations=1,
        radius=None,
    )
    draws = draw_all(setting, 0, range(1))
    draws.positions[:], draws.landmarks[:] = 0, 11
    draws.actor_h[:] = np.array([0.0, 0, 1])[:, None]  # reads the constant alone
    draws.actor_w[:], draws.actor_b[:] = 1, 0
    draws.actor_b[0, 0, 4] = 100  # stay
    history = train(setting, 0, range(1), [1], draws=draws, dtype=np.float64)
    assert history.reward.item() == -3
    np.testing.assert_allclose(history.critics.w.ravel(), 0.05 * -3 * np.array([-1, -1, 1]) / 3**0.5)
    assert history.value.item() == pytest.approx(0.15)
    assert history.positive.item() == history.skipped.item() == 0
    moved = [getattr(history.policies[0], part) - getattr(draws, f"actor_{part}") for part in "hwb"]
    assert sum((part**2).sum() for part in moved) ** 0.5 == pytest.approx(0.5)
    assert moved[2][0, 0, 4] < 0  # away from the action that paid less than expected
