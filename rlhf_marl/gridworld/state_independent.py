"""Exact values of policies that ignore the state, for any number of agents, and a bound on the best policy.

Such agents move independently. The probability that a landmark's closest agent is further away than k is the product
of the agents' probabilities. The expected distance is the sum of these products over k = 0, 1, ...

Values are mean rewards per step of an episode from uniform positions, as in exact.py. landmarks: (S, N) cells -> (S,).
"""

from itertools import combinations_with_replacement

import numpy as np

from rlhf_marl.gridworld.spread import DISTANCE, EPISODE, N_ACTIONS, N_CELLS, NEXT_CELL

MOST_AGENTS = 10  # limit for trying all constant joint actions: 1,001 up to their order

_FURTHER = (DISTANCE[..., None] > np.arange(DISTANCE.max())).astype(float)  # (cell, landmark, k)
_MOVES = np.eye(N_CELLS)[NEXT_CELL].swapaxes(0, 1)  # (action, cell, cell reached)


def random_values(landmarks: np.ndarray) -> np.ndarray:
    """Values of the uniform random policy."""
    return _values(_further(_MOVES.mean(0)) ** landmarks.shape[-1], landmarks)


def constant_values(landmarks: np.ndarray) -> np.ndarray:
    """Values of each board's best constant joint action, for at most MOST_AGENTS agents."""
    alone = [_further(move) for move in _MOVES]
    best = np.full(len(landmarks), -np.inf)
    for actions in combinations_with_replacement(range(N_ACTIONS), landmarks.shape[-1]):
        best = np.maximum(best, _values(np.prod([alone[action] for action in actions], axis=0), landmarks))
    return best


def bounds(landmarks: np.ndarray) -> np.ndarray:
    """Upper bounds on the value of any policy: every landmark's closest agent heads for it at full speed from the
    start, even if it serves several landmarks."""
    further = _FURTHER.mean(0) ** landmarks.shape[-1]
    left = [further[:, step:].sum(-1) for step in range(1, EPISODE + 1)]  # E[max(distance - step, 0)]
    return -np.mean(left, axis=0)[landmarks].sum(-1)


def _further(moves: np.ndarray) -> np.ndarray:
    """P(an agent is further than k from a landmark) after each step: (65, 65) -> (EPISODE, landmark, k)."""
    cells, rows = np.full(N_CELLS, 1 / N_CELLS), []
    for _ in range(EPISODE):
        cells = cells @ moves
        rows.append(np.tensordot(cells, _FURTHER, 1))
    return np.stack(rows)


def _values(further: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    return -further.sum(-1).mean(0)[landmarks].sum(-1)
