"""Runs whose agents live in processes of their own: equal to local ones, and what happens when processes are killed."""

import os
import signal
from threading import Timer
from types import SimpleNamespace

import pytest
import torch

import rlhf_marl
from rlhf_marl.algorithm.mixing import gossip_bytes
from rlhf_marl.distributed.build import build_distributed
from rlhf_marl.errors import RunStopped
from rlhf_marl.runs.checkpoints import AgentStates, Checkpoints
from tests.killing import TIMES

TIMES = {*TIMES, "worker_seconds"}
pytestmark = pytest.mark.usefixtures("cluster")


def train(content, path, before=None, **options):
    """Train, with `before(team, method, count)` called before each of the team's methods; returns run and team."""
    kept = SimpleNamespace()

    def builder(config, name, device, journal):
        experiment = build_distributed(config, name, device, journal)
        kept.team = team = experiment.team
        team.pids = team.processes()
        if before is not None:
            for method in ("respond", "score", "learn", "write_state"):
                wrap(team, method, before)
            object.__setattr__(experiment.player, "respond", team.respond)
        return experiment

    run = rlhf_marl.train(content, run_dir=path, builder=builder, **options)
    return run, kept.team


def wrap(team, method, before):
    original, counts = getattr(team, method), iter(range(1000))

    def wrapped(*arguments):
        before(team, method, next(counts))
        return original(*arguments)

    setattr(team, method, wrapped)


def kill(method, count, agent=1):
    """SIGKILL before the count-th call of a method, or, where agents exchange messages, while the others wait."""

    def before(team, called, counted):
        if (called, counted) == (method, count):
            pid = team.pids[agent]
            if method == "learn":
                os.kill(pid, signal.SIGSTOP)
                Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
            else:
                os.kill(pid, signal.SIGKILL)

    return before


def rows_of(run):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run.metrics.to_dict("records")]


@pytest.fixture(scope="module")
def whole(content, cluster, tmp_path_factory):
    """An uninterrupted run, and its team, whose workers have ended."""
    return train(content, tmp_path_factory.mktemp("whole") / "run")


def test_the_run_equals_a_local_one(content, whole, tmp_path):
    """The same tokens, metrics and state, with messages in place of a matrix product."""
    run, team = whole
    local = rlhf_marl.train(content | {"runtime": {"kind": "local"}}, run_dir=tmp_path / "local")
    theirs, ours = run.dialogues, local.dialogues
    assert theirs["responses"].tolist() == ours["responses"].tolist()
    assert theirs["aggregate"].tolist() == ours["aggregate"].tolist()
    numbers = [name for name in local.metrics if local.metrics[name].dtype.kind in "if" and name not in TIMES]
    assert len(numbers) > 20
    for name in numbers:
        assert run.metrics[name].tolist() == pytest.approx(local.metrics[name].tolist(), rel=1e-9, abs=1e-9), name
    graph = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    links = {(0, 1), (1, 0), (1, 2), (2, 1)}
    assert {(message.sender, message.receiver) for message in team.messages} == links
    assert set(run.metrics["gossip_bytes_sent"]) == set(run.metrics["gossip_bytes"])
    # Critic and Adam's second moment, 2 TD errors and the signal's scale, 8 bytes each, over three rounds.
    assert set(run.metrics["gossip_bytes"]) == {gossip_bytes(graph, 8 * (2 * 2 * 16 * 16 + 2 + 1), 3)}
    state, expected = (Checkpoints(one.path / "checkpoints").load()[0] for one in (run, local))
    assert isinstance(state, AgentStates)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-9)


def test_a_killed_agent_stops_the_run_which_resumes_bit_for_bit(content, whole, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(RunStopped, match=r"^agent 1 lost while scoring: its process ended; continue with --resume, or"):
        train(content, path, before=kill("score", 5))
    assert [folder.name for folder in sorted((path / "checkpoints").glob("iter*"))] == ["iteration_00002"]
    resumed, _ = train(content, path, resume=True)
    assert rows_of(resumed) == rows_of(whole[0])
    assert (path / "dialogues.jsonl").read_bytes() == (whole[0].path / "dialogues.jsonl").read_bytes()
    for file in (whole[0].path / "checkpoints" / "iteration_00005").rglob("*.*"):
        assert (path / file.relative_to(whole[0].path)).read_bytes() == file.read_bytes()


def test_survivors_go_on_when_an_agent_is_killed_while_they_wait_for_its_message(content, tmp_path, caplog):
    """Of the path 0 - 1 - 2, agent 1 goes: the ends of the path are left, without any neighbour."""
    content = content | {"iterations": 3, "runtime": {"kind": "ray", "lost": "continue"}}
    run, team = train(content, tmp_path / "run", before=kill("learn", 3))
    assert run.metrics["present"].tolist() == [[0, 1, 2]] * 9 + [[0, 2]] * 6
    assert run.metrics["agent"].tolist() == [0, 1, 2] * 3 + [0, 2] * 3
    answers = run.dialogues["responses"].tolist()
    assert [sum(bool(answer["tokens"]) for answer in of_turn) for of_turn in answers] == [3] * 8 + [2] * 4
    assert run.dialogues["reward_raw"].iloc[-1][1] is None
    assert all(" ".join(filter(None, (a["text"] for a in last))) for last in answers[-4:])
    assert "agent 1 lost while learning: its process ended; going on with agents 0, 2" in caplog.text
    assert "falls apart: agent 0 and agent 2 no longer hear of each other" in caplog.text
    assert {"absent"} <= {kind for kinds in run.metrics["warnings"] for kind in kinds}
    assert team.messages == []
    state = Checkpoints(run.path / "checkpoints").load()[0]
    before = AgentStates(run.path / "checkpoints" / "iteration_00002", ["agent_1/state.safetensors"])
    assert {name for name in state if name.startswith("agent_1.")} == set(before)
