import numpy as np
import pytest

from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.measure import _start, baselines, baselines_of, decay, exact_values, paired
from rlhf_marl.gridworld.training import train


def test_paired_curves_leave_the_landmarks_out():
    """Two seeds that differ in nothing but how good random policies are: no interval is left, and the mean is kept."""
    random = np.array([-9.0, -3.0])
    found = paired(random[:, None] + np.array([[1.0, 2.0]]), {"random": random})
    assert found.tolist() == [[-5, -4], [-5, -4]]


def test_the_start_of_more_agents_is_sampled(monkeypatch):
    """The same rollout for two agents, against exact values."""
    exact = baselines(Setting(width=6, depth=1), 0, 4)["start"]
    monkeypatch.setattr("rlhf_marl.gridworld.study.measure._EXACT", ())
    _start.cache_clear()
    sampled = baselines(Setting(width=6, depth=1), 0, 4)["start"]
    _start.cache_clear()
    np.testing.assert_allclose(sampled, exact, atol=1.0)
    assert (sampled != exact).all()


def test_exact_values_are_what_the_environment_pays():
    """Sampled reward of frozen policies (step size 0) against their exact value, over many steps."""
    setting = Setting(actor_step_size=0.0, iterations=40_000, width=8, depth=1, actor_output_scale=0.2)
    draws = draw_all(setting, 0, range(4))
    history = train(setting, 0, range(4), [40_000], draws=draws)
    exact = exact_values(draws.landmarks, history.policies[0])
    np.testing.assert_allclose(history.reward[:, 0], exact, atol=0.15)


def test_decay_is_the_power_of_1_over_t_in_the_second_half():
    """A gap of 8 / t^2 after a first half that does not fall; a seed ten times as far away falls alike."""
    t = np.array([1.0, 2, 4, 8])
    gap = np.array([8.0, 8, 8 / 16, 8 / 64])
    assert decay(np.stack([gap, 10 * gap, gap]), t).tolist() == pytest.approx([2, 2, 2])


def test_baselines_of_one_agent_by_hand():
    """The landmark at (0, 0): the best goes straight there, the best constant action is left, which keeps y."""
    found = baselines_of(np.array([[0]]))
    board = [(x, y, t) for x in range(13) for y in range(5) for t in range(1, 11)]
    assert found["bound"] == pytest.approx(-np.mean([max(x + y - t, 0) for x, y, t in board]))
    assert found["constant"] == pytest.approx(-np.mean([max(x - t, 0) + y for x, y, t in board]))
    assert found["optimum"] == found["bound"]
    assert found["random"] < found["constant"]
