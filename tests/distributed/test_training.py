"""Runs whose agents live in processes of their own equal local ones, and are resumed exactly."""

import pytest
import torch

import rlhf_marl
from rlhf_marl.algorithm.mixing import gossip_bytes
from rlhf_marl.errors import RunStopped
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.runs.checkpoints import AgentStates, Checkpoints
from rlhf_marl.runs.validations import is_finished
from tests.distributed.runs import kill, train
from tests.killing import TIMES

TIMES = {*TIMES, "worker_seconds"}
pytestmark = pytest.mark.usefixtures("cluster")


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


def test_a_masked_run_equals_a_local_one_and_messages_hide_what_they_carry(content, tmp_path):
    topology = {"graph": "ring", "laziness": 0.2, "gossip_rounds": 4, "masked": True}
    content = content | {"iterations": 2, "topology": topology}
    run, _ = train(content, tmp_path / "run")
    local = rlhf_marl.train(content | {"runtime": {"kind": "local"}}, run_dir=tmp_path / "local")
    assert run.dialogues["responses"].tolist() == local.dialogues["responses"].tolist()
    for name in (
        "td_error",
        "actor_signal",
        "gradient_norm",
        "step_scale",
        "disagreement_before",
        "disagreement_after",
    ):
        assert run.metrics[name].tolist() == pytest.approx(local.metrics[name].tolist(), rel=1e-9, abs=1e-9), name
    assert run.metrics["disagreement_after"].min() > 1e-4  # what is left of the masks


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


def test_without_gossip_workers_tell_each_other_nothing(content, tmp_path):
    run, team = train(content | {"iterations": 1, "topology": {"gossip_rounds": 0}}, tmp_path / "run")
    assert team.messages == []
    assert is_finished(run.path, done=1, iterations=1)  # without critics.safetensors
    rows = read_jsonl(run.path / "metrics.jsonl")
    assert {row["disagreement_before"] for row in rows} == {row["disagreement_after"] for row in rows} == {None}


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
