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
    """Train, with `before(team, method, count)` called before each of the team's methods; returns run and team.

    The team's `all_messages` are those of all updates.
    """
    kept = SimpleNamespace()

    def builder(config, name, device, journal):
        experiment = build_distributed(config, name, device, journal)
        kept.team = team = experiment.team
        team.pids, team.all_messages = team.processes(), []
        learn = team.learn

        def recorded(turns):
            rows = learn(turns)
            team.all_messages += team.messages
            return rows

        team.learn = recorded
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
    assert {(message.sender, message.receiver) for message in team.all_messages} == links
    assert set(run.metrics["gossip_bytes_sent"]) == set(run.metrics["gossip_bytes"])
    # Critic and Adam's second moment, 2 TD errors and the signal's scale, 8 bytes each, over three rounds.
    assert set(run.metrics["gossip_bytes"]) == {gossip_bytes(graph, 8 * (2 * 2 * 16 * 16 + 2 + 1), 3)}
    state, expected = (Checkpoints(one.path / "checkpoints").load()[0] for one in (run, local))
    assert isinstance(state, AgentStates)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-9)


def test_the_first_update_equals_a_local_one_in_float32(content, cluster, tmp_path):
    content = content | {"iterations": 1, "turns": 1, "model": content["model"] | {"dtype": "float32"}}
    content |= {"agents": content["agents"][:2], "topology": {"graph": "ring", "gossip_rounds": 2}}
    run, _ = train(content, tmp_path / "run")
    local = rlhf_marl.train(content | {"runtime": {"kind": "local"}}, run_dir=tmp_path / "local")
    assert run.dialogues["responses"].tolist() == local.dialogues["responses"].tolist()
    numbers = [name for name in local.metrics if local.metrics[name].dtype.kind in "if" and name not in TIMES]
    for name in numbers:
        assert run.metrics[name].tolist() == pytest.approx(local.metrics[name].tolist(), rel=1e-5, abs=1e-5), name


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
    states = [AgentStates(run.path / "checkpoints" / name, [file]) for name in NAMES for file in FILES[1:2]]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor)  # its part of the checkpoint before
    assert sorted(path.name for path in run.path.glob("adapters/*")) == ["agent_0", "agent_1", "agent_2"]


NAMES = ["iteration_00002", "iteration_00003"]
FILES = [f"agent_{agent}/state.safetensors" for agent in range(3)]


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


@pytest.mark.slow
def test_private_rewards_stay_in_the_workers(content, tmp_path, whole):
    """The same run, of which the driver sees the means alone."""
    run, team = train(content | {"runtime": {"kind": "ray", "private_rewards": True}}, tmp_path / "run")
    assert all(reward is None for scores in run.dialogues["reward_scaled"] for reward in scores)
    assert run.dialogues["critic_value"].isna().all()
    assert run.metrics["reward_scaled"].tolist() == whole[0].metrics["reward_scaled"].tolist()
    assert (run.path / "reward_models.json").read_text().strip() == "[]"
    assert team.reward_models == ["first", "second", "first"]


@pytest.mark.slow
def test_two_agents_in_a_worker_and_a_q_critic_equal_a_local_run(content, tmp_path):
    content = content | {"iterations": 2, "actor": {"step_size": 0.001, "signal": "td_q", "turns_per_update": 2}}
    run, team = train(content | {"runtime": {"kind": "ray", "agents_per_worker": 2}}, tmp_path / "run")
    local = rlhf_marl.train(content | {"runtime": {"kind": "local"}}, run_dir=tmp_path / "local")
    assert run.dialogues["responses"].tolist() == local.dialogues["responses"].tolist()
    for name in ("td_error", "gradient_norm", "disagreement_before", "disagreement_after"):
        assert run.metrics[name].tolist() == pytest.approx(local.metrics[name].tolist(), rel=1e-9, abs=1e-9), name
    assert {(message.sender, message.receiver) for message in team.messages} == {(1, 2), (2, 1)}
