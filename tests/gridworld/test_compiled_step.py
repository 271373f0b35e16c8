"""The compiled step by hand: two agents whose policies are nearly deterministic, so that every move is known."""

import numpy as np
import pytest

from rlhf_marl.gridworld import compiled_step
from rlhf_marl.gridworld.compiled_layout import (
    CLOSEST,
    ENTROPY,
    N_STATISTICS,
    REACHED,
    REDRAWN,
    REWARD,
    TD_Q,
    TD_V,
    Options,
    Seed,
    Tables,
    make_scratch,
)
from rlhf_marl.gridworld.encoding import SCALED, encode_critic
from rlhf_marl.gridworld.spread import DISTANCE, NEXT_CELL

UP, DOWN, LEFT, RIGHT, STAY = range(5)
TABLES = Tables(np.array([0.9, 0.0, 0.0, np.inf, 1.0]), SCALED, DISTANCE, NEXT_CELL, np.arange(2))  # γ = 0.9


def options(signal=TD_V, bootstrap=REDRAWN, restart_kernel=False):
    return Options(
        critic_steps=1,
        actor_samples=1,
        signal=signal,
        bootstrap=bootstrap,
        inverse=False,
        restart=False,
        average=False,
        linear=True,
        exact=False,
        gossiped_actors=False,
        centralised=False,
        local=False,
        own_share=0.5,
        split=CLOSEST,
        restart_kernel=restart_kernel,
        discount=0.9,
        reward_shift=1.0,
        reward_scale=2.0,
    )


def seed(actions, positions, age=0, inputs=5):
    """Agent i takes actions[i] wherever it is; landmarks at (0, 3) and (5, 2); the critics are linear, with H = I."""
    actor_h, actor_b = np.zeros((2, 5, 1)), np.zeros((2, 5, 1))
    actor_h[:, 4] = 1  # reads the constant alone
    for agent, action in enumerate(actions):
        actor_b[agent, action] = 1000
    return Seed(
        landmarks=np.array([3, 27]),
        values=np.zeros((1, 1)),
        power=np.eye(2),
        critic_h=np.eye(inputs),
        critic_0=np.zeros((1, 1, inputs)),
        critic_b=np.zeros(1),
        actor_h=actor_h,
        actor_w=np.ones((2, 1, 1, 1)),
        actor_b=actor_b,
        critics=np.zeros((2, 2, 1, 1, inputs)),
        bounds=np.zeros((2, 2, 1)),
        positions=np.array(positions),
        age=np.array([age]),
        uniforms=np.array([[0.5, 0.5, 0.5, 0.5, 0.95]]),
        redrawn=np.array([[7, 9]]),
        statistics=np.zeros(N_STATISTICS),
    )


def play(o, board):
    scratch = make_scratch(o, board)
    compiled_step.play(o, TABLES, board, scratch, 0, 0, True)
    return scratch


def test_a_step_by_hand():
    """From (0, 0) and (5, 2) to (0, 1) and (6, 2): 2 from the first landmark and 1 from the second.

    The first landmark's distance is credited to agent 0 and the second's to agent 1, times two agents: -4 and -2.
    """
    board = seed([UP, RIGHT], [0, 27])
    z = play(options(), board)
    assert z.cells[0].tolist() == [0, 27]
    assert z.actions[0].tolist() == [UP, RIGHT]
    assert board.positions.tolist() == z.reached[0].tolist() == [1, 32]
    assert board.age[0] == 1
    assert board.statistics[REWARD] == -3
    assert z.learned[0].tolist() == [-6, -2]  # (-4 + 1) * 2 and (-2 + 1) * 2
    assert z.follows[0] == 0.9
    assert board.statistics[ENTROPY] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(z.x0[0], encode_critic(np.array([0, 27])))
    np.testing.assert_allclose(z.next_x0[0], encode_critic(np.array([1, 32])))


def test_a_wall_stops_a_move():
    board = seed([LEFT, DOWN], [3, 10])
    assert play(options(), board).reached[0].tolist() == [3, 10]


@pytest.mark.parametrize(("bootstrap", "target"), [(REDRAWN, [7, 9]), (REACHED, [1, 32])])
def test_the_tenth_step_redraws_the_positions(bootstrap, target):
    board = seed([UP, RIGHT], [0, 27], age=9)
    z = play(options(bootstrap=bootstrap), board)
    assert board.positions.tolist() == [7, 9]
    assert board.age[0] == 0
    assert board.statistics[REWARD] == -3  # of the state reached
    np.testing.assert_allclose(z.next_x0[0], encode_critic(np.array(target)))


def test_the_restart_kernel_redraws_by_chance():
    """The last uniform number, 0.95, is above γ = 0.9."""
    board = seed([UP, RIGHT], [0, 27])
    play(options(restart_kernel=True), board)
    assert board.positions.tolist() == [7, 9]


def test_a_q_critic_reads_the_actions_taken_and_drawn_next():
    board = seed([UP, RIGHT], [0, 27], inputs=15)
    z = play(options(signal=TD_Q), board)
    np.testing.assert_allclose(z.x0[0], encode_critic(np.array([0, 27]), np.array([UP, RIGHT])))
    np.testing.assert_allclose(z.next_x0[0], encode_critic(np.array([1, 32]), np.array([UP, RIGHT])))


def test_tied_agents_share_a_landmark():
    """Both at (0, 0), landmarks at (0, 3) and (5, 2): 3 and 7 away, halved, times two."""
    rewards = np.zeros(2)
    team = compiled_step.local_rewards(np.array([0, 0]), np.array([3, 27]), DISTANCE, True, rewards)
    assert (team, rewards.tolist()) == (-10, [-10, -10])
    compiled_step.local_rewards(np.array([0, 32]), np.array([3, 27]), DISTANCE, False, rewards)
    assert rewards.tolist() == [-4, -4]


@pytest.mark.parametrize(("uniform", "action"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.59, 2), (0.61, 4), (0.999, 4)])
def test_the_action_drawn_is_where_the_cumulated_probability_passes(uniform, action):
    assert compiled_step.draw(np.array([0.1, 0.2, 0.3, 0.0, 0.4]), uniform) == action


def test_a_score_by_hand():
    """π = (1, 1, 2, 4, 8) / 16. The score of action 4 is its indicator minus π, here over 1 - π(4) = 1/2."""
    logits, probabilities, slope = np.log([1.0, 1, 2, 4, 8]), np.zeros(5), np.zeros(5)
    total = compiled_step.softmax(logits, probabilities)
    assert total == pytest.approx(np.log(16))
    np.testing.assert_allclose(probabilities, [0.0625, 0.0625, 0.125, 0.25, 0.5])
    assert compiled_step.score(logits, 4, total, slope) == pytest.approx(np.log(0.5))
    np.testing.assert_allclose(slope, [-0.125, -0.125, -0.25, -0.5, 1])
