"""Agents' processes end at random moments: ten runs of up to 20 kills each, and the same runs undisturbed.

In every run one agent is spared, a different one from seed to seed: its rewards show what the others' losses cost.
"""

import os
import random
import signal
from contextlib import suppress
from threading import Timer

import pytest

import rlhf_marl
from tests.conftest import write_card
from tests.distributed.runs import train

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
KILLS, SEEDS, ITERATIONS, LATE = 20, range(10), 600, 400


def low(prompts, responses):
    """Share of ASCII, out of six characters: something that agents learn in a hundred iterations."""
    return [sum(letter < "\x80" for letter in text) / 6 for text in responses]


def high(prompts, responses):
    return [sum(letter >= "\x80" for letter in text) / 6 for text in responses]


@pytest.fixture(scope="module")
def learnable(content, tmp_path_factory):
    """Plain data of a config whose agents' rewards rise."""
    folder = tmp_path_factory.mktemp("cards")
    cards = [str(write_card(folder, f.__name__, f"tests.distributed.test_kills:{f.__name__}")) for f in (low, high)]
    agents = [agent | {"reward_model": cards[i % 2]} for i, agent in enumerate(content["agents"])]
    return content | {
        "iterations": ITERATIONS,
        "agents": agents,
        "topology": {"graph": "complete"},
        "actor": {"step_size": 0.01},
        "checkpoint_every": 10,
    }


@pytest.fixture(scope="module")
def undisturbed(learnable, tmp_path_factory):
    """Each agent's late rewards in the runs that nothing disturbs, by seed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    local = learnable | {"runtime": {"kind": "local"}}
    return {seed: late(rlhf_marl.train(local | {"seed": seed}, run_dir=folder / str(seed))) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills(learnable, undisturbed, tmp_path, caplog, seed):
    """Every iteration is played, the log says who was there, and the spared agent earns as without the kills."""
    spared = seed % 3
    run, kills = train_with_kills(learnable | {"seed": seed}, tmp_path / "run", spared)
    assert len(kills) >= KILLS / 2  # agents that are loading cannot be killed
    lost = [message for message in caplog.messages if " lost while " in message]
    assert 0 < len(lost) <= len(kills)
    check_log(run)
    spread = [rewards[spared] for rewards in undisturbed.values()]
    assert min(spread) - 0.05 < late(run)[spared] < max(spread) + 0.05


def train_with_kills(content, path, spared):
    """The run, and the agents that were killed, in order."""
    generator, kills = random.Random(content["seed"]), []

    def before(team, method, count):
        if len(kills) < KILLS and generator.random() < 0.03:
            alive = {agent: pid for agent, pid in team.processes().items() if agent != spared}
            if alive:
                agent = generator.choice(sorted(alive))
                kills.append(agent)
                Timer(generator.uniform(0, 0.1), kill_process, [alive[agent]]).start()

    runtime = {"kind": "ray", "lost": "continue", "round_timeout": 60.0}
    run, _ = train(content | {"runtime": runtime}, path, before=before)
    return run, kills


def kill_process(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def check_log(run):
    """No line is lost, and those present are named."""
    for update, rows in run.metrics.groupby("update"):
        assert all(present == rows["agent"].tolist() for present in rows["present"]), update
    assert run.metrics["update"].unique().tolist() == list(range(2 * ITERATIONS))
    assert len(run.dialogues) == 4 * ITERATIONS
    assert run.metrics["reward_scaled"].notna().all()


def late(run):
    """Each agent's mean reward in the last iterations."""
    rows = run.metrics[run.metrics["iteration"] >= LATE]
    return rows.groupby("agent")["reward_scaled"].mean().to_dict()
