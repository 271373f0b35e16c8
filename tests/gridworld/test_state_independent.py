"""Agents that do not look: against dynamic programming for two, simulation for three."""

from itertools import product

import numpy as np
import pytest

from rlhf_marl.gridworld import state_independent
from rlhf_marl.gridworld.exact import optimal_values, policy_values, reward_table, uniform_policies
from rlhf_marl.gridworld.spread import DISTANCE, EPISODE, N_ACTIONS, N_CELLS, random_landmarks
from tests.gridworld.board import Spread
from tests.gridworld.test_exact import constant_policies

PAIRS = [[(2, 1), (10, 3)], [(0, 0), (12, 4)], [(6, 2), (6, 3)]]


def cells(pairs):
    return np.array([[5 * x + y for x, y in pair] for pair in pairs])


def values(policies):
    """Of the same policies on the three boards."""
    return policy_values(reward_table(cells(PAIRS)), np.stack([policies] * len(PAIRS)), EPISODE)


def test_two_agents_are_those_of_dynamic_programming():
    np.testing.assert_allclose(state_independent.random_values(cells(PAIRS)), values(uniform_policies()), rtol=1e-12)
    constant = [values(constant_policies(a, b)) for a, b in product(range(N_ACTIONS), repeat=2)]
    np.testing.assert_allclose(state_independent.constant_values(cells(PAIRS)), np.max(constant, axis=0), rtol=1e-12)


def test_three_agents_by_simulation():
    """20,000 episodes; the tolerance is four standard errors."""
    generator, n = np.random.default_rng(0), 20_000
    landmarks = random_landmarks(3, generator)
    board = Spread(np.tile(landmarks, (n, 1)), 3)
    board.reset(generator.integers(N_CELLS, size=(n, 3)))
    returns = sum(board.step(generator.integers(N_ACTIONS, size=(n, 3)))[2] for _ in range(EPISODE)) / EPISODE
    assert abs(state_independent.random_values(landmarks[None])[0] - returns.mean()) < 4 * returns.std() / n**0.5
    assert state_independent.constant_values(landmarks[None])[0] > state_independent.random_values(landmarks[None])[0]


def test_the_bound_is_one():
    """Above the optimum for two agents, and not by much; for one agent it is the optimum."""
    gap = state_independent.bounds(cells(PAIRS)) - optimal_values(reward_table(cells(PAIRS)), EPISODE)
    assert (gap >= 0).all()
    assert (gap < 1).all()
    walked = [-np.maximum(DISTANCE[:, 33] - step, 0).mean() for step in range(1, EPISODE + 1)]
    assert state_independent.bounds(np.array([[33]]))[0] == pytest.approx(np.mean(walked), rel=1e-12)
