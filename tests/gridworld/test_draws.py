import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.draws import Noise, draw_all
from rlhf_marl.gridworld.setting import Setting


def test_noise_is_the_same_in_any_helpings():
    whole, parts = Noise(1, 0, 3), Noise(1, 0, 3)
    uniforms, cells = whole.take(7)
    first, second = parts.take(2), parts.take(5)
    np.testing.assert_array_equal(uniforms, np.concatenate([first[0], second[0]]))
    np.testing.assert_array_equal(cells, np.concatenate([first[1], second[1]]))


def test_initial_weights_have_the_printed_spread():
    draws = draw_all(Setting(width=40, critic_output_scale=0.5), 0, range(4))
    for name, variance in (("critic_h", 2), ("critic_w", 2), ("critic_b", 0.25), ("actor_w", 2), ("actor_b", 1)):
        assert getattr(draws, name).var() == pytest.approx(variance, rel=0.25), name


def test_a_graph_that_cannot_connect_is_a_usage_error():
    with pytest.raises(UsageError, match="topology: edge_probability"):
        draw_all(Setting(n_agents=4, graph="random", edge_probability=0.0), 0, range(1))
