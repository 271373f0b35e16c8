"""The board by hand."""

import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.spread import (
    COORDINATES,
    N_ACTIONS,
    N_CELLS,
    NEXT_CELL,
    cells_of,
    local_rewards,
    random_landmarks,
    team_reward,
)
from tests.gridworld.board import Spread


def cell(x, y):
    return 5 * x + y


def test_moves_by_hand():
    up, down, left, right, stay = range(N_ACTIONS)
    assert NEXT_CELL[cell(3, 2)].tolist() == [cell(3, 3), cell(3, 1), cell(2, 2), cell(4, 2), cell(3, 2)]
    assert NEXT_CELL[cell(0, 0), [down, left]].tolist() == [0, 0]
    assert NEXT_CELL[cell(12, 4), [up, right]].tolist() == [64, 64]
    assert NEXT_CELL[cell(12, 4), stay] == 64
    assert (np.abs(COORDINATES[NEXT_CELL] - COORDINATES[:, None]).sum(-1) <= 1).all()


def test_rewards_by_hand():
    """Agents at (0, 0) and (6, 2), landmarks at (0, 3) and (5, 2): 3 from the first, 1 from the second."""
    positions, landmarks = np.array([cell(0, 0), cell(6, 2)]), np.array([cell(0, 3), cell(5, 2)])
    assert team_reward(positions, landmarks) == -4
    assert local_rewards("shared", positions, landmarks).tolist() == [-4, -4]
    assert local_rewards("closest", positions, landmarks).tolist() == [-6, -2]
    assert local_rewards("closest", positions[::-1], landmarks).tolist() == [-2, -6]
    # Each has a landmark of its own, whoever is closest to it.
    assert local_rewards("owned", positions, landmarks).tolist() == [-6, -2]
    assert local_rewards("owned", positions[::-1], landmarks).tolist() == [-6, -2]
    # Both at the same place share each landmark: 3 and 7 away, halved, times two.
    both = np.array([cell(0, 0), cell(0, 0)])
    assert local_rewards("closest", both, landmarks).tolist() == [-10, -10]


@pytest.mark.parametrize("split", ["shared", "closest", "owned"])
@pytest.mark.parametrize("n_agents", [1, 2, 4])
def test_local_rewards_average_to_the_teams(split, n_agents):
    generator = np.random.default_rng(0)
    positions = generator.integers(N_CELLS, size=(50, n_agents))
    landmarks = random_landmarks(3, generator)
    found = local_rewards(split, positions, landmarks).mean(-1)
    np.testing.assert_allclose(found, team_reward(positions, landmarks), atol=1e-12)


def test_the_restart_kernel_ends_episodes_by_chance():
    """Of 20,000 steps about a fifth end an episode with γ = 0.8, at any age."""
    generator = np.random.default_rng(0)
    boards = Spread(np.tile([3, 40], (2000, 1)), 2, discount=0.8)
    start = generator.integers(N_CELLS, size=(2000, 2))
    boards.reset(start)
    ended = []
    for _ in range(10):
        cells, _, _, over = boards.step(np.full((2000, 2), 4), generator.random(2000))
        assert np.array_equal(cells, start)  # everyone stays
        start = boards.reset(generator.integers(N_CELLS, size=(2000, 2)), where=over)
        assert (np.any(start != cells, axis=-1) <= over).all()
        assert (boards.ages[over] == 0).all()
        ended.append(over.mean())
    np.testing.assert_allclose(ended, 0.2, atol=0.04)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ([], "not a list of"),
        ([(13, 0)], r"\(13, 0\) is off the board: x goes from 0 to 12, y from 0 to 4"),
        ([(0, -1)], "off the board"),
        ([(1, 1), (1, 1)], "names a cell twice"),
        ([(0.5, 1)], "whole numbers"),
        ([3], "not a list of"),
    ],
)
def test_impossible_landmarks_are_one_line(landmarks, message):
    with pytest.raises(UsageError, match=message):
        cells_of(landmarks)


def test_more_landmarks_than_cells_are_one_line():
    with pytest.raises(UsageError, match=r"landmarks: 66 do not fit on the board's 65 cells"):
        random_landmarks(66, np.random.default_rng(0))
