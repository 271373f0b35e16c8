"""The PettingZoo environment by hand, and equal to the batched board and to what training was paid."""

import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test
from pettingzoo.utils.conversions import parallel_to_aec

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.draws import Noise, draw_all
from rlhf_marl.gridworld.parallel_env import SpreadEnv
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import COORDINATES, EPISODE, N_ACTIONS, N_CELLS, cells_of
from rlhf_marl.gridworld.training import train
from tests.gridworld.board import Spread
from tests.gridworld.reference import Reference


@pytest.mark.parametrize("split", ["shared", "closest"])
def test_both_forms_agree_on_the_same_actions(split):
    generator = np.random.default_rng(1)
    landmarks = [(1, 1), (7, 4), (12, 0)]
    start, actions = generator.integers(N_CELLS, size=3), generator.integers(N_ACTIONS, size=(EPISODE, 3))
    batched = Spread(np.stack([cells_of(landmarks)] * 2), 3, split)
    batched.reset(np.stack([start, start[::-1]]))
    env = SpreadEnv(3, landmarks, split)
    env.reset(options={"positions": start})
    for t in range(EPISODE):
        cells, rewards, team, over = batched.step(np.stack([actions[t], actions[t][::-1]]))
        observations, one, _, truncations, infos = env.step({f"agent_{i}": actions[t, i] for i in range(3)})
        assert [one[f"agent_{i}"] for i in range(3)] == rewards[0].tolist()
        assert rewards[1].tolist() == rewards[0][::-1].tolist()
        assert infos["agent_0"]["team_reward"] == team[0]
        np.testing.assert_allclose(observations["agent_1"][:2], COORDINATES[cells[0, 1]] / (12, 4), atol=1e-6)
        assert set(truncations.values()) == set(over.tolist()) == {t == EPISODE - 1}


@pytest.mark.parametrize("reset", ["periodic", "restart_kernel"])
def test_the_board_pays_what_training_was_paid(reset):
    """The actions that training took, taken in SpreadEnv, lead to the same states and rewards."""
    setting = Setting(n_agents=3, split="closest", reset=reset, discount=0.8, iterations=40, width=5, depth=2)
    draws, noise, samples = draw_all(setting, 7, range(1)), Noise(7, 0, 3), []
    learner = Reference(setting, draws)
    step = learner._step
    learner._step = lambda *numbers: samples.append(step(*numbers)) or samples[-1]
    env = SpreadEnv(3, [tuple(COORDINATES[c]) for c in draws.landmarks[0]], "closest", episode=setting.iterations)
    team, cells, redrawn = [], None, 0
    for _ in range(setting.iterations):
        learner.iterate(*(part[None] for part in noise.take(1)))
        sample = samples[-1]
        if not np.array_equal(cells, sample.cells[0]):
            redrawn += 1
            env.reset(options={"positions": sample.cells[0]})
        _, rewards, _, _, infos = env.step({f"agent_{i}": a for i, a in enumerate(sample.actions[0])})
        assert list(rewards.values()) == sample.reward[0].tolist()
        assert infos["agent_0"]["team_reward"] == sample.team[0]
        team.append(sample.team[0])
        cells = (env.state().reshape(-1, 2)[:3] * (12, 4)).round().astype(int) @ (5, 1)
    assert redrawn == 4 if reset == "periodic" else redrawn > 4
    compiled = train(setting, 7, range(1), range(1, setting.iterations + 1), draws=draws, dtype=np.float64)
    np.testing.assert_allclose(compiled.reward[0], team)


def test_the_restart_kernel_ends_episodes_by_chance():
    """After five steps on average with γ = 0.8."""
    env = SpreadEnv(2, discount=0.8)
    env.reset(seed=0)
    lengths, steps = [], 0
    for _ in range(2000):
        _, _, _, truncated, _ = env.step({"agent_0": 4, "agent_1": 4})
        steps += 1
        if truncated["agent_0"]:
            lengths.append(steps)
            steps = 0
            env.reset()
    assert np.mean(lengths) == pytest.approx(5, abs=0.7)


@pytest.mark.parametrize("n_agents", [1, 2, 4])
def test_pettingzoo_accepts_it(n_agents):
    parallel_api_test(SpreadEnv(n_agents), num_cycles=100)
    api_test(parallel_to_aec(SpreadEnv(n_agents, discount=0.7)), num_cycles=100)


def trajectory(seed):
    env = SpreadEnv(3)
    observations, _ = env.reset(seed=seed)
    generator, rows = np.random.default_rng(0), [observations]
    for _ in range(3 * EPISODE):
        if not env.agents:
            rows.append(env.reset()[0])
        actions = {agent: int(generator.integers(N_ACTIONS)) for agent in env.agents}
        observations, rewards, *_ = env.step(actions)
        assert all(env.observation_space(agent).contains(o) for agent, o in observations.items())
        rows += [observations, rewards]
    return [np.concatenate([np.ravel(value) for value in row.values()]).tolist() for row in rows]


def test_a_seed_decides_the_whole_trajectory():
    assert trajectory(3) == trajectory(3)
    assert trajectory(3) != trajectory(4)


def test_render_by_hand():
    """Landmarks at (0, 0) and (12, 4), agents at (1, 4) and (2, 0)."""
    env = SpreadEnv(2, [(0, 0), (12, 4)], render_mode="ansi")
    env.reset(options={"positions": [9, 10]})
    rows = env.render().splitlines()
    assert (rows[0], rows[4]) == (".0..........*", "*.1..........")


def test_impossible_sizes_are_one_line():
    with pytest.raises(UsageError, match=r"landmarks: 70 do not fit"):
        SpreadEnv(70)
    with pytest.raises(UsageError, match=r"agents: 0 given"):
        SpreadEnv(0)
    with pytest.raises(ValueError, match=r"split: 'fair' is not a split of the reward; choose shared, closest, owned"):
        SpreadEnv(2, split="fair")
    with pytest.raises(UsageError, match=r"discount: 1 given; at least 0 and below 1"):
        SpreadEnv(2, discount=1)


@pytest.mark.parametrize("positions", [[70, 0], [1], [-1, 3], [[1], [2, 3]], [0.5, 1], "no"])
def test_impossible_positions_are_one_line(positions):
    with pytest.raises(UsageError, match=r"positions: .* given; 2 cells from 0 to 64 are needed"):
        SpreadEnv(2).reset(options={"positions": positions})


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"agent_0": -1, "agent_1": 0}, "actions: -1 given for agent_0; a whole number from 0 to 4"),
        ({"agent_0": 0, "agent_1": 5}, "actions: 5 given for agent_1"),
        ({"agent_0": 0}, "actions: nothing given for agent_1"),
    ],
)
def test_impossible_actions_are_one_line(actions, message):
    env = SpreadEnv(2)
    env.reset(seed=0)
    with pytest.raises(UsageError, match=message):
        env.step(actions)
