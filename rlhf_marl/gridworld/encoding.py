"""ξ of section 3.2: a state, or a state and a joint action, as a vector of unit length.

It contains coordinates scaled to -1 .. 1, a constant, and for a Q critic each agent's one-hot action. With the
constant, opposite corners differ in more than the sign.
"""

import numpy as np

from rlhf_marl.gridworld.spread import COORDINATES, HEIGHT, N_ACTIONS, WIDTH

SCALED = (2 * COORDINATES / (WIDTH - 1, HEIGHT - 1) - 1).astype(float)  # (cell, 2)


def critic_inputs(n_agents: int, *, with_actions: bool) -> int:
    """Input size d of a critic."""
    return 2 * n_agents + 1 + (N_ACTIONS * n_agents if with_actions else 0)


def actor_inputs(n_agents: int) -> int:
    """Input size d' of an actor."""
    return 2 * n_agents + 1


def encode_critic(positions: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
    """x of s, or of (s, a). positions, actions: (..., N); returns (..., d)."""
    parts = [SCALED[positions].reshape(*positions.shape[:-1], -1), np.ones((*positions.shape[:-1], 1))]
    if actions is not None:
        parts.append(np.eye(N_ACTIONS)[actions].reshape(*actions.shape[:-1], -1))
    x = np.concatenate(parts, axis=-1)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encode_actor(positions: np.ndarray, agent: int) -> np.ndarray:
    """x of s as agent i sees it: its own coordinates first, then those of i + 1, i + 2, ... (..., N) -> (..., d)."""
    return encode_critic(np.roll(positions, -agent, axis=-1))
