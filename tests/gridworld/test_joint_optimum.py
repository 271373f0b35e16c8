"""The best joint policy by dynamic programming, against brute force and the code for two agents."""

from itertools import product

import numpy as np
import pytest

from rlhf_marl.gridworld.exact import optimal_values, reward_table
from rlhf_marl.gridworld.joint_optimum import joint_optimal_values
from rlhf_marl.gridworld.spread import DISTANCE, EPISODE, N_CELLS, NEXT_CELL
from rlhf_marl.gridworld.state_independent import bounds, constant_values


def test_two_agents_are_those_of_the_joint_chain():
    landmarks = np.array([[0, 64], [7, 33]])
    expected = optimal_values(reward_table(landmarks), EPISODE)
    np.testing.assert_allclose(joint_optimal_values(landmarks), expected, rtol=1e-12)


def test_one_agent_walks_to_its_landmark():
    """From distance d it is max(d - t, 0) away after t steps."""
    left = [np.maximum(DISTANCE[:, 31] - t, 0).mean() for t in range(1, EPISODE + 1)]
    assert joint_optimal_values(np.array([[31]])) == pytest.approx(-np.mean(left), rel=1e-12)


def test_three_agents_last_step_by_brute_force(monkeypatch):
    """An episode of one step: the best of all 125 joint actions in every joint state."""
    monkeypatch.setattr("rlhf_marl.gridworld.joint_optimum.EPISODE", 1)
    landmarks = np.array([3, 30, 61])
    best = np.full((N_CELLS,) * 3, -np.inf)
    for actions in product(range(5), repeat=3):
        to = [DISTANCE[NEXT_CELL[:, a]][:, landmarks] for a in actions]  # (cell, landmark)
        nearest = np.minimum(np.minimum(to[0][:, None, None], to[1][None, :, None]), to[2][None, None, :])
        best = np.maximum(best, -nearest.sum(-1))
    assert joint_optimal_values(landmarks[None]) == pytest.approx(best.mean(), rel=1e-12)


def test_three_agents_are_between_constant_actions_and_the_bound():
    landmarks = np.array([[0, 32, 64], [1, 2, 3]])
    values = joint_optimal_values(landmarks)
    assert (constant_values(landmarks) < values).all()
    assert (values <= bounds(landmarks)).all()
