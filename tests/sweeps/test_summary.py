"""sweep.json against hand-worked numbers: means, intervals, pairs, and what is not compared."""

import json

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import agents_fingerprint
from rlhf_marl.sweeps.execute import execute
from rlhf_marl.sweeps.processes import on_this_machine
from rlhf_marl.sweeps.summary import summarise
from tests.evaluation.examples import SETTINGS
from tests.reporting.runs import evaluation_numbers


def summary(runs, out, failures=None):
    return summarise(runs, failures or {}, out, config="tiny.yaml", over={"seed": [0, 1, 2]})


@pytest.fixture
def trained(stub, planned, tmp_path):
    """Trains the planned runs with the stub: agent i's reward in update u is seed + gossip_rounds + i + u."""

    def train(over, **changes):
        runs = planned(over, **({"iterations": 10} | changes))
        failures = execute(runs, start=on_this_machine(2), jobs=2, evaluate=False, report=lambda run, what: None)
        return runs, summary(runs, tmp_path / "sweep", failures)

    return train


def test_means_and_intervals_of_an_arm(trained):
    """Updates 0 to 9 of seeds 0, 1, 2: the last fifth is the mean of 8 and 9, the half width t(0.975, 2) / sqrt(3)."""
    _, found = trained({"seed": [0, 1, 2], "topology.gossip_rounds": [0]})
    agent_0, agent_1, team = found["arms"][0]["speakers"]
    assert [speaker["name"] for speaker in (agent_0, agent_1, team)] == ["agent 0", "agent 1", "team"]
    assert agent_0["reward"] == {
        "mean": 9.5,
        "low": pytest.approx(9.5 - 2.48414, abs=1e-4),
        "high": pytest.approx(9.5 + 2.48414, abs=1e-4),
        "n": 3,
    }
    assert (agent_1["reward"]["mean"], team["reward"]["mean"]) == (10.5, 10.0)
    assert agent_0["change"] == {"mean": 8.0, "low": 8.0, "high": 8.0, "n": 3}
    assert (agent_0["reward_model"], team["reward_model"]) == ("vowels", None)
    assert (agent_0["held_out"], agent_0["verdicts"]) == (None, {})


def test_curves_are_moving_averages_with_bands(trained):
    """The team's reward in update u of seed s is s + u + 0.5; averages of 1, 2, ... 5 updates."""
    _, found = trained({"seed": [0, 1, 2], "topology.gossip_rounds": [0]})
    team = found["arms"][0]["curves"][2]
    assert team["name"] == "team"
    assert team["update"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert team["mean"][:6] == [1.5, 2.0, 2.5, 3.0, 3.5, 4.5]
    assert team["high"][0] - team["mean"][0] == pytest.approx(2.48414, abs=1e-4)


def test_updates_without_a_line_of_every_agent_are_left_out(trained, tmp_path):
    """Agent 1's line of update 9 is lost: the last fifth of nine updates is update 8."""
    runs, _ = trained({"seed": [0], "topology.gossip_rounds": [0]})
    log = runs[0].path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    agent_0 = summary(runs, tmp_path / "sweep")["arms"][0]["speakers"][0]
    assert agent_0["reward"]["mean"] == 8.0
    log.write_text("".join(line for i, line in enumerate(lines) if i % 4 in (0, 3)))
    with pytest.raises(UsageError, match=r"metrics.jsonl: no update has the rewards of all 2 agents"):
        summary(runs, tmp_path / "sweep")


def test_differences_are_paired_by_seed(trained):
    """Seeds differ by much, arms by 20 for every seed: the paired interval has no width."""
    _, found = trained({"topology.gossip_rounds": [0, 20], "seed": [0, 100]})
    assert found["reference"] == "topology.gossip_rounds=0"
    assert [row["speaker"] for row in found["differences"]] == ["agent 0", "agent 1", "team"]
    for row in found["differences"]:
        assert row["arm"] == "topology.gossip_rounds=20"
        assert row["reward"] == {"mean": 20.0, "low": 20.0, "high": 20.0, "n": 2}
        assert row["note"] is None


def test_one_seed_has_no_interval(trained):
    _, found = trained({"topology.gossip_rounds": [0, 20]})
    assert found["arms"][0]["speakers"][0]["reward"] == {"mean": 8.5, "low": None, "high": None, "n": 1}
    assert found["differences"][0]["reward"] == {"mean": 20.0, "low": None, "high": None, "n": 1}


def test_other_reward_models_are_not_compared(trained, tmp_path):
    cards = [str(tmp_path / "vowels.yaml"), str(tmp_path / "length.yaml")]
    _, found = trained({"agents.1.reward_model": cards[::-1], "seed": [0, 1]})
    agent_0, agent_1, team = found["differences"]
    assert agent_0["reward"]["mean"] == 0.0
    for row in (agent_1, team):
        assert row["reward"] is None
        assert row["note"] == "other reward models, so rewards are not compared"


def test_unfinished_runs_are_named_and_left_out(trained):
    _, found = trained({"actor.step_size": [0.001, 0.5], "seed": [0, 1]})
    assert found["arms"][0]["runs"][1] == {
        **{"seed": 1, "folder": "actor.step_size=0.001/1", "state": "finished", "reason": None},
    }
    assert found["arms"][1]["runs"][0]["reason"] == "the service is down"
    assert found["arms"][1]["speakers"] == found["arms"][1]["curves"] == found["differences"] == []


def test_evaluations_are_summarised_and_compared_only_with_the_same_judges(trained, tmp_path):
    """The example evaluation's held-out difference is -1, here -1 - gossip_rounds; a stale one is ignored."""
    runs, _ = trained({"topology.gossip_rounds": [0, 20], "seed": [0, 1]})
    for run in runs:
        evaluate(run, held_out=-1.0 - run.config.topology.gossip_rounds)
    found = summary(runs, tmp_path / "sweep")
    team = found["arms"][1]["speakers"][2]
    assert team["held_out"] == {"mean": -21.0, "low": -21.0, "high": -21.0, "n": 2}
    assert team["verdicts"] == {"better on its own reward, worse on held-out judges: likely hacked": 2}
    assert found["differences"][2]["held_out"]["mean"] == -20.0
    evaluate(runs[3], held_out=-21.0, questions_sha256="1" * 64)
    row = summary(runs, tmp_path / "sweep")["differences"][2]
    assert (row["held_out"], row["note"]) == (None, "other judges or questions, so evaluations are not compared")
    adapter = runs[3].path / "adapters" / "agent_0" / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"trained further")
    assert summary(runs, tmp_path / "sweep")["arms"][1]["speakers"][2]["held_out"]["n"] == 1


def evaluate(run, *, held_out, **settings):
    numbers = evaluation_numbers()
    numbers["agents"] = numbers["agents"][:2]
    numbers["settings"] |= SETTINGS | {"judges": {"held": "digest"}} | agents_fingerprint(run.path) | settings
    for speaker in (*numbers["agents"], numbers["team"]):
        speaker["held_out_reward"] = {**speaker["held_out_reward"], "difference": held_out}
    (run.path / "evaluation.json").write_text(json.dumps(numbers))
