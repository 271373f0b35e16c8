"""Validations whose answers come from workers equal those of a local run."""

import json

import pytest
import torch
from safetensors.torch import load_file

import rlhf_marl
from rlhf_marl.errors import UsageError
from tests.conftest import write_card
from tests.distributed.runs import kill, train

QUESTIONS = [
    {"id": "tea", "kind": "ordinary", "prompt": "What is tea?"},
    {"id": "sad", "kind": "multi_turn", "prompt": "I am sad.", "follow_ups": ["Since Monday."]},
]


@pytest.fixture
def validated(content, tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    judges = [str(write_card(tmp_path, "length", "tests.conftest:length"))]
    validation = {"judges": judges, "questions": str(tmp_path / "questions.jsonl"), "every": 1}
    return content | {"iterations": 2, "checkpoint_every": 1, "validation": validation}


@pytest.fixture
def local(validated, tmp_path):
    return rlhf_marl.train(validated | {"runtime": {"kind": "local"}}, run_dir=tmp_path / "local")


def test_validations_equal_those_of_a_local_run(validated, local, cluster, tmp_path):
    run, _ = train(validated, tmp_path / "run")
    assert run.validations["iteration"].tolist() == [0, 1, 2]
    for name in ("team", "agents", "judges", "questions"):
        assert run.validations[name].tolist() == local.validations[name].tolist()
    assert len(set(map(str, run.validations["agents"]))) > 1  # training changes the answers
    for agent in range(3):
        ours, theirs = (load_file(one.path / f"best/agent_{agent}/adapter_model.safetensors") for one in (local, run))
        for name, weights in ours.items():
            torch.testing.assert_close(theirs[name], weights, rtol=1e-6, atol=1e-9)


@pytest.mark.slow  # tests/evaluation/test_validation.py has it without a cluster
def test_a_judge_that_trains_an_agent_is_refused(validated, cluster, tmp_path):
    own = validated["validation"] | {"judges": [validated["agents"][1]["reward_model"]]}
    with pytest.raises(UsageError, match=r"^config: validation.judges.0: 'second' trains agent 1; a judge must"):
        train(validated | {"validation": own}, tmp_path / "run")


@pytest.mark.slow
def test_an_agent_that_is_killed_in_a_validation_answers_when_it_is_back(validated, local, cluster, tmp_path, caplog):
    waiting = validated | {"runtime": {"kind": "ray", "lost": "wait"}}
    run, _ = train(waiting, tmp_path / "run", before=kill("respond", 1))
    assert "agent 1 lost while answering: its process ended; the others wait for it" in caplog.text
    assert run.validations["agents"].tolist() == local.validations["agents"].tolist()
