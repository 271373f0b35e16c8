"""Exact values against cases worked out by hand, enumeration, and simulation."""

from itertools import product

import numpy as np
import pytest

from rlhf_marl.gridworld.exact import (
    discounted_values,
    optimal_values,
    policy_values,
    reward_table,
    uniform_policies,
)
from rlhf_marl.gridworld.spread import N_ACTIONS, N_CELLS, NEXT_CELL, cells_of, team_reward
from tests.gridworld.board import Spread

LANDMARKS = [(2, 1), (10, 3)]
STAY = 4


def value(policies, horizon=10):
    """Mean reward per step on the board of LANDMARKS."""
    return policy_values(reward_table(cells_of(LANDMARKS))[None], policies[None], horizon)[0]


def optimal_value(landmarks, horizon=10):
    return optimal_values(reward_table(cells_of(landmarks))[None], horizon)[0]


def random_policies(seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(N_ACTIONS) * 0.3, size=(2, N_CELLS, N_CELLS))


def constant_policies(first, second):
    """Agent 0 always takes action `first`, agent 1 `second`."""
    policies = np.zeros((2, N_CELLS, N_CELLS, N_ACTIONS))
    policies[0, ..., first] = policies[1, ..., second] = 1
    return policies


def all_positions():
    return np.array(list(product(range(N_CELLS), repeat=2)))


def test_agents_that_stay_by_hand():
    """The reward is that of uniform positions, at every horizon: the mean over all 4225 placements."""
    by_hand = team_reward(all_positions(), cells_of(LANDMARKS)).mean()
    for horizon in (1, 10):
        assert value(constant_policies(STAY, STAY), horizon) == pytest.approx(by_hand, abs=1e-12)


def test_one_step_by_enumeration():
    """All 25 joint actions from all 4225 states, under a policy that looks at both cells."""
    policies = random_policies()
    total = 0.0
    for a, b in product(range(N_ACTIONS), repeat=2):
        own, other = all_positions().T
        reached = np.stack([NEXT_CELL[own, a], NEXT_CELL[other, b]], axis=-1)
        weight = policies[0, own, other, a] * policies[1, other, own, b]
        total += (weight * team_reward(reached, cells_of(LANDMARKS))).mean()
    assert value(policies, 1) == pytest.approx(total, abs=1e-10)


def test_the_best_single_step_by_enumeration():
    reached = [
        team_reward(NEXT_CELL[all_positions(), [a, b]], cells_of(LANDMARKS)) for a, b in product(range(5), repeat=2)
    ]
    assert optimal_value(LANDMARKS, 1) == pytest.approx(np.max(reached, axis=0).mean(), abs=1e-10)


def test_a_policy_by_simulation():
    """20,000 episodes of the batched environment; the tolerance is four standard errors."""
    policies, generator = random_policies(1), np.random.default_rng(2)
    n = 20_000
    env = Spread(np.tile(cells_of(LANDMARKS), (n, 1)), 2)
    cells = env.reset(generator.integers(N_CELLS, size=(n, 2)))
    returns = np.zeros(n)
    over = False
    while not np.any(over):
        cumulated = np.stack([policies[0, cells[:, 0], cells[:, 1]], policies[1, cells[:, 1], cells[:, 0]]], 1).cumsum(
            -1
        )
        actions = (generator.random((n, 2, 1)) > cumulated).sum(-1).clip(max=N_ACTIONS - 1)
        cells, _, team, over = env.step(actions)
        returns += team / 10
    assert abs(value(policies) - returns.mean()) < 4 * returns.std() / n**0.5


def test_no_policy_beats_the_best():
    best = optimal_value(LANDMARKS)
    policies = (uniform_policies(), random_policies(3), constant_policies(STAY, STAY), constant_policies(2, 3))
    assert all(value(p) < best - 0.1 for p in policies)
    np.testing.assert_allclose(uniform_policies().sum(-1), 1)


def test_a_landmark_under_everyone():
    """Two agents, one landmark: the optimum walks the closest agent there, a step at a time."""
    distance = -team_reward(all_positions(), cells_of([(6, 2)]))
    walked = [-np.maximum(distance - t, 0).mean() for t in range(1, 11)]
    assert optimal_value([(6, 2)]) == pytest.approx(np.mean(walked), abs=1e-10)


def test_discounted_value_solves_bellmans_equation():
    policies, discount = random_policies(4), 0.8
    values = discounted_values(reward_table(cells_of(LANDMARKS))[None], policies[None], discount)[0]
    own, other, expected = 7, 50, 0.0
    for a, b in product(range(N_ACTIONS), repeat=2):
        reached = NEXT_CELL[own, a], NEXT_CELL[other, b]
        target = team_reward(np.array(reached), cells_of(LANDMARKS)) + discount * values[reached]
        expected += policies[0, own, other, a] * policies[1, other, own, b] * target
    assert values[own, other] == pytest.approx(expected, abs=1e-8)
