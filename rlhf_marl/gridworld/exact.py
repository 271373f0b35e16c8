"""Exact values for two agents, by dynamic programming on the joint chain of 65^2 states.

A value is the mean reward per step over an episode of `horizon` steps from uniform positions:
E[r_1 + ... + r_h] / h, with the reward of the state reached. `discounted_values` gives E[Σ γ^t r_{t+1}] per state.

S is the number of boards. Policies are tables (2, 65, 65, 5): agent, own cell, other agent's cell, action.
"""

import numpy as np
from numba import njit, prange

from rlhf_marl.gridworld.spread import DISTANCE, N_ACTIONS, N_CELLS, NEXT_CELL


def reward_table(landmarks: np.ndarray) -> np.ndarray:
    """Team reward of every joint state: cells (..., L) -> (..., 65, 65), indexed by agent 0's and agent 1's cell."""
    to_landmark = DISTANCE[:, landmarks]  # (cell, ..., L)
    nearest = np.minimum(to_landmark[:, None], to_landmark[None, :])
    return np.moveaxis(-nearest.sum(-1).astype(float), (0, 1), (-2, -1))


def uniform_policies() -> np.ndarray:
    """Policies that choose all actions with equal probability."""
    return np.full((2, N_CELLS, N_CELLS, N_ACTIONS), 1 / N_ACTIONS)


def policy_values(rewards: np.ndarray, policies: np.ndarray, horizon: int) -> np.ndarray:
    """Mean reward per step from uniform positions. (S, 65, 65), (S, 2, 65, 65, 5) -> (S,)."""
    return _horizon_values(rewards, policies, horizon, NEXT_CELL, False).mean((-2, -1)) / horizon


def optimal_values(rewards: np.ndarray, horizon: int) -> np.ndarray:
    """Mean reward per step of the best policy. (S, 65, 65) -> (S,)."""
    unused = np.zeros((len(rewards), 2, 1, 1, 1))
    return _horizon_values(rewards, unused, horizon, NEXT_CELL, True).mean((-2, -1)) / horizon


def discounted_values(
    rewards: np.ndarray, policies: np.ndarray, discount: float, tolerance: float = 1e-10
) -> np.ndarray:
    """V(s) = E[Σ γ^t r_{t+1}] of the chain without resets; J of Eq. (1) is its mean.

    (S, 65, 65), (S, 2, 65, 65, 5) -> (S, 65, 65).
    """
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
