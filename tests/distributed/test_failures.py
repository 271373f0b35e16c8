"""What happens when agents' processes are killed, hang or are slow, and when a node of the cluster goes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlhf_marl
from rlhf_marl.errors import RunStopped
from rlhf_marl.runs.checkpoints import AgentStates, Checkpoints
from tests.conftest import write_card
from tests.distributed.runs import kill, train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("cluster")


def test_survivors_go_on_when_an_agent_is_killed_while_they_wait_for_its_message(content, tmp_path, caplog):
    """Of the path 0 - 1 - 2, agent 1 goes: the ends of the path are left, without any neighbour."""
    content = content | {"iterations": 3, "runtime": {"kind": "ray", "lost": "continue"}}
    run, team = train(content, tmp_path / "run", before=kill("learn", 4))
    assert run.metrics["agent"].tolist() == [0, 1, 2] * 4 + [0, 2] * 2
    assert run.metrics["present"].tolist() == [[0, 1, 2]] * 12 + [[0, 2]] * 4
    assert [kinds.count("absent") for kinds in run.metrics["warnings"]] == [0] * 12 + [1] * 4
    # It had answered the first turn of the last iteration, and is missing in the second.
    answers = run.dialogues["responses"].tolist()
    assert [sum(bool(answer["tokens"]) for answer in of_turn) for of_turn in answers] == [3] * 10 + [2] * 2
    assert [scores[1] is None for scores in run.dialogues["reward_raw"]] == [False] * 10 + [True] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "agent 1 lost while learning: its process ended; going on with agents 0, 2",
        "the graph of those who are left falls apart: agent 0 and agent 2 no longer hear of each other",
        "agent 1 is back",  # at the end, to write its adapter
    ]
    assert team.messages == []
    folders = [run.path / "checkpoints" / f"iteration_0000{i}" for i in (2, 3)]
    states = [AgentStates(folder, ["agent_1/state.safetensors"]) for folder in folders]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor)  # its part of the checkpoint before
    assert sorted(path.name for path in run.path.glob("adapters/*")) == ["agent_0", "agent_1", "agent_2"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["respond", "score", "learn", "write_state"])
def test_a_lost_agent_comes_back_at_once_if_the_others_wait(content, tmp_path, caplog, method):
    """Killed before its first checkpoint and after it: no line is lost, and it has its neighbour's critic."""
    content = content | {"iterations": 4, "checkpoint_every": 1, "runtime": {"kind": "ray", "lost": "wait"}}
    run, _ = train(content, tmp_path / "run", before=kill(method, 2, agent=2))
    assert run.metrics["agent"].tolist() == [0, 1, 2] * 8
    assert all(answer["tokens"] for of_turn in run.dialogues["responses"] for answer in of_turn)
    assert [record.getMessage().partition(":")[2] for record in caplog.records] == [
        " its process ended; the others wait for it",
        "",
    ]
    state = Checkpoints(run.path / "checkpoints").load()[0]
    apart = [state[f"agent_{agent}.critic.weights"] for agent in (1, 2)]
    assert (apart[0] - apart[1]).norm() < 0.1 * apart[0].norm()


@pytest.mark.slow
def test_an_agent_that_hangs_is_lost_after_the_timeout(content, tmp_path, caplog):
    def stop(team, called, counted):
        if (called, counted) == ("learn", 1):
            os.kill(team.pids[2], signal.SIGSTOP)

    runtime = {"kind": "ray", "lost": "continue", "round_timeout": 5.0}
    run, _ = train(content | {"iterations": 2, "runtime": runtime}, tmp_path / "run", before=stop)
    assert "agent 2 lost while learning: it was silent for 5 s; going on with agents 0, 1" in caplog.text
    assert run.metrics["agent"].tolist() == [0, 1, 2] + [0, 1] * 3
    assert run.metrics["disagreement_after"].iloc[-1] < run.metrics["disagreement_before"].iloc[-1]


def on_two_nodes(content, tmp_path, replaced, **runtime):
    content = content | {"iterations": 5, "topology": {"graph": "complete"}, "checkpoint_every": 1}
    (tmp_path / "config.json").write_text(
        json.dumps(content | {"runtime": {"kind": "ray", "lost": "continue", **runtime}})
    )
    script = [sys.executable, "-m", "tests.distributed.two_nodes"]
    arguments = [tmp_path / "config.json", tmp_path / "run", str(replaced)]
    return subprocess.run([*script, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_node_goes_with_its_agent_and_another_takes_its_place(content, tmp_path):
    """The agent's new process waits until the cluster has room for it; the others go on meanwhile."""
    done = on_two_nodes(content, tmp_path, replaced=3, round_timeout=60.0)
    assert done.returncode == 0, done.stdout + done.stderr
    there = rlhf_marl.load_run(tmp_path / "run").metrics.groupby("update")["agent"].apply(list).tolist()
    (lost,) = {0, 1, 2} - set(there[2])
    assert there == [[0, 1, 2]] * 2 + [[agent for agent in range(3) if agent != lost]] * 4 + [[0, 1, 2]] * 4
    assert f"agent {lost} lost while" in done.stdout
    assert f"agent {lost} is back" in done.stdout


@pytest.mark.slow
def test_without_room_for_a_lost_agent_the_run_ends_without_its_adapter(content, tmp_path):
    done = on_two_nodes(content, tmp_path, replaced=99, round_timeout=20.0)
    assert done.returncode == 1
    assert re.search(r"did not come back within \d+ s, so the adapters are not written", done.stderr)
    run = rlhf_marl.load_run(tmp_path / "run")
    assert run.metrics["update"].nunique() == 10
    here = run.config.runtime.model_copy(update={"address": None})
    resumed, _ = train(run.config.model_copy(update={"runtime": here}), run.path, resume=True)
    assert len(list(resumed.path.glob("adapters/agent_*"))) == 3


@pytest.mark.slow
def test_a_reward_model_that_stops_answering_is_lost_after_the_timeout(content, tmp_path):
    silent = write_card(tmp_path, "silent", "tests.distributed.conftest:silent")
    agents = [*content["agents"][:2], {"reward_model": str(silent)}]
    content = content | {"agents": agents, "runtime": {"kind": "ray", "round_timeout": 5.0}}
    with pytest.raises(RunStopped, match="agent 2 lost while scoring: it was silent for 5 s; continue with --resume"):
        train(content, tmp_path / "run")


@pytest.mark.slow
def test_an_agent_ten_times_slower_than_the_others_is_waited_for(content, tmp_path, caplog):
    slow = write_card(tmp_path, "slow", "tests.distributed.conftest:slow")
    agents = [*content["agents"][:2], {"reward_model": str(slow)}]
    content = content | {"iterations": 2, "runtime": {"kind": "ray", "lost": "continue", "round_timeout": 20.0}}
    run, _ = train(content | {"agents": agents}, tmp_path / "run")
    assert run.metrics["agent"].tolist() == [0, 1, 2] * 4
    assert caplog.records == []
