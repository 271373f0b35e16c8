"""Modified Simple Spread (appendix D.1): N agents on a 13 x 5 board cover N fixed landmarks.

A cell has the number 5 x + y. Position arrays hold cells; the last axis is the agents, leading axes (seeds) are free.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_marl.errors import UsageError

WIDTH, HEIGHT = 13, 5
N_CELLS = WIDTH * HEIGHT
ACTIONS = ("up", "down", "left", "right", "stay")
N_ACTIONS = len(ACTIONS)
EPISODE = 10  # steps after which all agents move to random cells

COORDINATES = np.stack(np.divmod(np.arange(N_CELLS), HEIGHT), axis=-1)  # (cell, 2): x, y
DISTANCE = np.abs(COORDINATES[:, None] - COORDINATES[None]).sum(-1)  # (cell, cell): L1

_MOVES = np.array([(0, 1), (0, -1), (-1, 0), (1, 0), (0, 0)])
_reached = COORDINATES[:, None] + _MOVES
_reached = np.clip(_reached, 0, (WIDTH - 1, HEIGHT - 1))  # no move off the board
NEXT_CELL = _reached[..., 0] * HEIGHT + _reached[..., 1]  # (cell, action)


def team_reward(positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Minus the sum over landmarks of the L1 distance to the closest agent. (..., N), (..., L) cells -> (...)."""
    return -_distances(positions, landmarks).min(-2).sum(-1).astype(float)


def _shared(positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Every agent gets the team reward; gossip then has no effect by construction."""
    n_agents = positions.shape[-1]
    return np.repeat(team_reward(positions, landmarks)[..., None], n_agents, axis=-1)


def _closest(positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Each landmark's distance is credited to its closest agent, times N; tied agents share it."""
    distances = _distances(positions, landmarks)
    nearest = distances.min(-2, keepdims=True)
    closest = distances == nearest
    share = closest / closest.sum(-2, keepdims=True)
    return -positions.shape[-1] * (share * nearest).sum(-1)


def _owned(positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Landmark j's distance is credited to agent j (modulo N), times N, whoever is closest."""
    n_agents = positions.shape[-1]
    nearest = _distances(positions, landmarks).min(-2)
    owners = np.arange(nearest.shape[-1]) % n_agents
    return -n_agents * np.stack([nearest[..., owners == i].sum(-1) for i in range(n_agents)], axis=-1).astype(float)


# How the team reward is split among agents. In each, the mean over agents is the team reward.
SPLITS = {"shared": _shared, "closest": _closest, "owned": _owned}


def local_rewards(split: str, positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """r^i of each agent: (..., N), (..., L) cells -> (..., N).

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not a split of the reward; choose {', '.join(SPLITS)}")
    return SPLITS[split](positions, landmarks)


def _distances(positions: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    return DISTANCE[positions[..., :, None], landmarks[..., None, :]]  # (..., agent, landmark)


def cells_of(landmarks: Sequence[tuple[int, int]]) -> np.ndarray:
    """Cells of (x, y) pairs; raises UsageError if the list is empty, a pair is off the board or two are equal."""
    try:
        places = [(int(x), int(y)) for x, y in landmarks if int(x) == x and int(y) == y]
    except (TypeError, ValueError, OverflowError):
        places = []
    if not places or len(places) != len(landmarks):
        raise UsageError(f"landmarks: {landmarks!r} is not a list of (x, y) with whole numbers, at least one")
    for x, y in places:
        if not (0 <= x < WIDTH and 0 <= y < HEIGHT):
            raise UsageError(
                f"landmarks: ({x}, {y}) is off the board: x goes from 0 to {WIDTH - 1}, y from 0 to {HEIGHT - 1}"
            )
    if len(set(places)) < len(places):
        raise UsageError(f"landmarks: {landmarks!r} names a cell twice; landmarks are distinct")
    return np.array([HEIGHT * x + y for x, y in places])


def random_landmarks(n_landmarks: int, generator: np.random.Generator) -> np.ndarray:
    """Distinct cells, drawn uniformly; raises UsageError if there are more landmarks than cells."""
    if not 0 < n_landmarks <= N_CELLS:
        raise UsageError(f"landmarks: {n_landmarks} do not fit on the board's {N_CELLS} cells; choose 1 to {N_CELLS}")
    return generator.choice(N_CELLS, n_landmarks, replace=False)
