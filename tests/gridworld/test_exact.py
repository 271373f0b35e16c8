"""Exact values against cases worked out by hand, enumeration, and simulation."""

from itertools import product

import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.exact import (
    constant_policies,
    constant_value,
    discounted_constant_values,
    discounted_optimal_values,
    discounted_values,
    optimal_value,
    policy_value,
    random_value,
    uniform_policies,
)
from rlhf_marl.gridworld.spread import N_ACTIONS, N_CELLS, NEXT_CELL, Spread, cells_of, team_reward

LANDMARKS = [(2, 1), (10, 3)]
STAY = 4


def random_policies(seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(N_ACTIONS) * 0.3, size=(2, N_CELLS, N_CELLS))


def all_positions():
    return np.array(list(product(range(N_CELLS), repeat=2)))


def test_agents_that_stay_by_hand():
    """The reward is that of uniform positions, at every horizon: the mean over all 4225 placements."""
    by_hand = team_reward(all_positions(), cells_of(LANDMARKS)).mean()
    for horizon in (1, 10):
        assert policy_value(LANDMARKS, constant_policies(STAY, STAY), horizon) == pytest.approx(by_hand, abs=1e-12)


def test_one_step_by_enumeration():
    """All 25 joint actions from all 4225 states, under a policy that looks at both cells."""
    policies = random_policies()
    total = 0.0
    for a, b in product(range(N_ACTIONS), repeat=2):
        own, other = all_positions().T
        reached = np.stack([NEXT_CELL[own, a], NEXT_CELL[other, b]], axis=-1)
        weight = policies[0, own, other, a] * policies[1, other, own, b]
        total += (weight * team_reward(reached, cells_of(LANDMARKS))).mean()
    assert policy_value(LANDMARKS, policies, 1) == pytest.approx(total, abs=1e-10)


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
    assert abs(policy_value(LANDMARKS, policies) - returns.mean()) < 4 * returns.std() / n**0.5


def test_order_of_the_values():
    values = [random_value(LANDMARKS), constant_value(LANDMARKS), optimal_value(LANDMARKS)]
    assert values == sorted(values)
    assert policy_value(LANDMARKS, uniform_policies()) == values[0]
    mixed = policy_value(LANDMARKS, random_policies(3).tolist())  # nested lists will do
    assert mixed < values[2]


def test_a_landmark_under_everyone():
    """Two agents, one landmark: the optimum walks the closest agent there, a step at a time."""
    distance = -team_reward(all_positions(), cells_of([(6, 2)]))
    walked = [-np.maximum(distance - t, 0).mean() for t in range(1, 11)]
    assert optimal_value([(6, 2)]) == pytest.approx(np.mean(walked), abs=1e-10)


def test_discounted_value_solves_bellmans_equation():
    policies, discount = random_policies(4), 0.8
    values = discounted_values(LANDMARKS, policies, discount)
    own, other, expected = 7, 50, 0.0
    for a, b in product(range(N_ACTIONS), repeat=2):
        reached = NEXT_CELL[own, a], NEXT_CELL[other, b]
        target = team_reward(np.array(reached), cells_of(LANDMARKS)) + discount * values[reached]
        expected += policies[0, own, other, a] * policies[1, other, own, b] * target
    assert values[own, other] == pytest.approx(expected, abs=1e-8)


def test_the_discounted_optimum_solves_bellmans_optimality_equation():
    """In every state the best of the 25 joint actions; no policy is better anywhere."""
    discount = 0.5
    best = discounted_optimal_values(LANDMARKS, discount)
    own, other = all_positions().T
    targets = []
    for a, b in product(range(N_ACTIONS), repeat=2):
        reached = NEXT_CELL[own, a], NEXT_CELL[other, b]
        targets.append(team_reward(np.stack(reached, axis=-1), cells_of(LANDMARKS)) + discount * best[reached])
    np.testing.assert_allclose(best.ravel(), np.max(targets, axis=0), atol=1e-8)
    constant = discounted_constant_values(LANDMARKS, discount)
    assert constant.mean() > discounted_values(LANDMARKS, constant_policies(STAY, STAY), discount).mean()
    for values in (
        constant,
        *(discounted_values(LANDMARKS, p, discount) for p in (uniform_policies(), random_policies())),
    ):
        assert (best >= values - 1e-8).all()
        assert best.mean() > values.mean() + 0.5
    one_step = discounted_optimal_values(LANDMARKS, 0.0).mean()
    assert one_step == pytest.approx(optimal_value(LANDMARKS, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: policy_value(LANDMARKS, np.ones((2, 65, 65, 4))), r"policies: shape \(2, 65, 65, 4\) given"),
        (lambda: policy_value(LANDMARKS, 2 * uniform_policies()), "not all rows are probabilities"),
        (lambda: policy_value(LANDMARKS, np.full((2, 65, 65, 5), np.nan)), "not all rows are probabilities"),
        (lambda: optimal_value(LANDMARKS, 0), "horizon: 0 given"),
        (lambda: optimal_value(LANDMARKS, 2.5), "horizon: 2.5 given; a whole number"),
        (lambda: optimal_value(LANDMARKS, "x"), "horizon: 'x' given; a whole number"),
        (lambda: discounted_values(LANDMARKS, uniform_policies(), 1.0), "discount: 1.0 given; a number of at least 0"),
        (lambda: discounted_optimal_values(LANDMARKS, "x"), "discount: 'x' given"),
        (lambda: policy_value(LANDMARKS, [[1], [2, 3]]), "policies: not an array of numbers"),
        (lambda: random_value([(float("inf"), 1)]), "not a list of"),
        (lambda: random_value([(2, 1), (2, 1)]), "names a cell twice"),
        (lambda: constant_value([(2, 9)]), "off the board"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(UsageError, match=message):
        call()
