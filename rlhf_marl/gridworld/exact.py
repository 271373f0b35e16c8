"""Exact values for two agents, by dynamic programming on the joint chain of 65^2 states.

A value is the mean reward per step over an episode of `horizon` steps from uniform positions:
E[r_1 + ... + r_h] / h, with the reward of the state reached. The discounted functions give E[Σ γ^t r_{t+1}] per state.

Policies are tables (2, 65, 65, 5): agent, own cell, other agent's cell, action.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numba import njit, prange

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.spread import DISTANCE, EPISODE, N_ACTIONS, N_CELLS, NEXT_CELL, cells_of

Landmarks = Sequence[tuple[int, int]]
POLICY_SHAPE = (2, N_CELLS, N_CELLS, N_ACTIONS)


def reward_table(landmarks: np.ndarray) -> np.ndarray:
    """Team reward of every joint state: cells (..., L) -> (..., 65, 65), indexed by agent 0's and agent 1's cell."""
    to_landmark = DISTANCE[:, landmarks]  # (cell, ..., L)
    nearest = np.minimum(to_landmark[:, None], to_landmark[None, :])
    return np.moveaxis(-nearest.sum(-1).astype(float), (0, 1), (-2, -1))


def uniform_policies() -> np.ndarray:
    """Policies that choose all actions with equal probability."""
    return np.full(POLICY_SHAPE, 1 / N_ACTIONS)


def constant_policies(first: int, second: int) -> np.ndarray:
    """Agent 0 always takes action `first`, agent 1 `second`."""
    policies = np.zeros(POLICY_SHAPE)
    policies[0, ..., first] = policies[1, ..., second] = 1
    return policies


def random_value(landmarks: Landmarks, horizon: int = EPISODE) -> float:
    """Value of the uniform random policy."""
    return policy_value(landmarks, uniform_policies(), horizon)


def constant_value(landmarks: Landmarks, horizon: int = EPISODE) -> float:
    """Value of the best constant joint action: the maximum for policies that ignore the state."""
    return max(
        policy_value(landmarks, constant_policies(*actions), horizon) for actions in product(range(N_ACTIONS), repeat=2)
    )


def optimal_value(landmarks: Landmarks, horizon: int = EPISODE) -> float:
    """Value of the best policy for this horizon, which may depend on the time left."""
    rewards = reward_table(cells_of(landmarks))
    return float(optimal_values(rewards[None], _checked(horizon))[0])


def policy_value(landmarks: Landmarks, policies: Any, horizon: int = EPISODE) -> float:
    """Value of a product policy.

    Args:
        policies: (2, 65, 65, 5) probabilities: agent, own cell, other agent's cell, action.

    Raises:
        UsageError: wrong shape, or rows that are not probabilities.
    """
    rewards = reward_table(cells_of(landmarks))
    return float(policy_values(rewards[None], check_policies(policies)[None], _checked(horizon))[0])


def discounted_values(landmarks: Landmarks, policies: Any, discount: float, tolerance: float = 1e-10) -> np.ndarray:
    """V(s) = E[Σ γ^t r_{t+1}] of the chain without resets, (65, 65); J of Eq. (1) is its mean.

    Raises:
        UsageError: see `policy_value`; or γ outside 0 <= γ < 1.
    """
    rewards = reward_table(cells_of(landmarks))
    return discounted(rewards[None], check_policies(policies)[None], _checked_discount(discount), tolerance)[0]


def discounted_constant_values(landmarks: Landmarks, discount: float, tolerance: float = 1e-10) -> np.ndarray:
    """`discounted_values` of the constant joint action with the highest mean, (65, 65)."""
    values = (
        discounted_values(landmarks, constant_policies(*actions), discount, tolerance)
        for actions in product(range(N_ACTIONS), repeat=2)
    )
    return max(values, key=lambda value: float(value.mean()))


def discounted_optimal_values(landmarks: Landmarks, discount: float, tolerance: float = 1e-10) -> np.ndarray:
    """V*(s) = max_a E[r + γ V*(s')] of the chain without resets, by value iteration, (65, 65); J* is its mean."""
    discount = _checked_discount(discount)
    rewards = reward_table(cells_of(landmarks))
    values, following = np.zeros_like(rewards), np.empty_like(rewards)
    while True:
        _best_backup(rewards + discount * values, NEXT_CELL, following)
        if np.abs(following - values).max() <= tolerance * (1 - discount):
            return following
        values = following.copy()


def check_policies(policies: Any) -> np.ndarray:
    """The policies as a float array; raises UsageError if invalid."""
    try:
        table = np.asarray(policies, dtype=float)
    except (TypeError, ValueError):
        raise UsageError(f"policies: not an array of numbers; shape {POLICY_SHAPE} is needed") from None
    if table.shape != POLICY_SHAPE:
        raise UsageError(f"policies: shape {table.shape} given; {POLICY_SHAPE} is needed: agent, own, other, action")
    if not (table.min() >= 0 and np.abs(table.sum(-1) - 1).max() < 1e-6):
        raise UsageError("policies: not all rows are probabilities: at least 0, and with sum 1 over the actions")
    return table


def _checked(horizon: int) -> int:
    if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
        raise UsageError(f"horizon: {horizon!r} given; a whole number of steps is needed, at least one")
    return int(horizon)


def _checked_discount(discount: float) -> float:
    if isinstance(discount, bool) or not isinstance(discount, (int, float, np.number)) or not 0 <= discount < 1:
        raise UsageError(f"discount: {discount!r} given; a number of at least 0 and below 1 is needed")
    return float(discount)


def policy_values(rewards: np.ndarray, policies: np.ndarray, horizon: int) -> np.ndarray:
    """Mean reward per step from uniform positions. (S, 65, 65), (S, 2, 65, 65, 5) -> (S,)."""
    return _horizon_values(rewards, policies, horizon, NEXT_CELL, False).mean((-2, -1)) / horizon


def optimal_values(rewards: np.ndarray, horizon: int) -> np.ndarray:
    """Mean reward per step of the best policy. (S, 65, 65) -> (S,)."""
    unused = np.zeros((len(rewards), 2, 1, 1, 1))
    return _horizon_values(rewards, unused, horizon, NEXT_CELL, True).mean((-2, -1)) / horizon


def discounted(rewards: np.ndarray, policies: np.ndarray, discount: float, tolerance: float = 1e-10) -> np.ndarray:
    """V of the discounted chain without resets. (S, 65, 65), (S, 2, 65, 65, 5) -> (S, 65, 65)."""
    values = np.zeros_like(rewards)
    while True:
        following = expected_next(rewards + discount * values, policies, NEXT_CELL)
        if np.abs(following - values).max() <= tolerance * (1 - discount):
            return following
        values = following


@njit(cache=True)
def _backup(target: np.ndarray, policies: np.ndarray, next_cell: np.ndarray, out: np.ndarray) -> None:
    """out(s) = Σ_a π(a|s) target(s'(s, a))."""
    n, n_actions = next_cell.shape
    for c in range(n):
        for d in range(n):
            total = 0.0
            for a in range(n_actions):
                row = target[next_cell[c, a]]
                inner = 0.0
                for b in range(n_actions):
                    inner += policies[1, d, c, b] * row[next_cell[d, b]]
                total += policies[0, c, d, a] * inner
            out[c, d] = total


@njit(cache=True)
def _best_backup(target: np.ndarray, next_cell: np.ndarray, out: np.ndarray) -> None:
    """out(s) = max_a target(s'(s, a))."""
    n, n_actions = next_cell.shape
    for c in range(n):
        for d in range(n):
            best = -np.inf
            for a in range(n_actions):
                for b in range(n_actions):
                    best = max(best, target[next_cell[c, a], next_cell[d, b]])
            out[c, d] = best


@njit(parallel=True, cache=True)
def expected_next(target: np.ndarray, policies: np.ndarray, next_cell: np.ndarray) -> np.ndarray:
    """E[target(s') | s] on every board: (S, 65, 65) -> (S, 65, 65)."""
    out = np.empty_like(target)
    for s in prange(len(target)):
        _backup(target[s], policies[s], next_cell, out[s])
    return out


@njit(parallel=True, cache=True)
def _horizon_values(
    rewards: np.ndarray, policies: np.ndarray, horizon: int, next_cell: np.ndarray, best: bool
) -> np.ndarray:
    """Sum of rewards over `horizon` steps from every state, under the given policies or the best one."""
    values = np.zeros_like(rewards)
    for s in prange(len(rewards)):
        following = np.empty_like(rewards[s])
        for _ in range(horizon):
            target = rewards[s] + values[s]
            if best:
                _best_backup(target, next_cell, following)
            else:
                _backup(target, policies[s], next_cell, following)
            values[s] = following
    return values
