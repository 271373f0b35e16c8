"""A run's controller and judges ask a server of another run, and get what the same model says in this process."""

import pytest
import torch

from rlhf_marl.config.schema import OpenAIController
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.controller import Exchange
from rlhf_marl.errors import RunStopped
from rlhf_marl.rewards import JudgeCard
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.serving.answers import Answerer, Sampling
from tests.serving.server import serving

VARIABLE, KEY = "SERVED_KEY", "key-of-the-server"
INSTRUCTION = 'system: "Be fair."\nuser: "{{ prompt }} {{ responses }}"\n'


@pytest.fixture(scope="module")
def server(loaded_run):
    with serving(loaded_run, key=KEY) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)


def test_a_controller(loaded_run, server, tmp_path):
    templates = tmp_path / "controller.yaml"
    task = INSTRUCTION.replace("\n", "\n  ").rstrip()
    templates.write_text(f"aggregate:\n  {task}\nnext_prompt:\n  {task}\n")
    config = OpenAIController(
        kind="openai",
        model="base",
        base_url=server.url,
        api_key_env=VARIABLE,
        templates=str(templates),
        aggregate_tokens=9,
        next_prompt_tokens=9,
    )
    prepared = prepare_controller(config, ["a"], "test")
    controller = build_controller(config, prepared, None, torch.device("cpu"), "test", UNRECORDED)
    exchanges = [Exchange([{"role": "user", "content": text}], ["yes"], ["a"]) for text in ("hi?", "why?")]
    merged = controller.merge(exchanges, turn=0, last=False)
    for exchange, found in zip(exchanges, merged, strict=True):
        messages = prepared.aggregate.messages(
            "test", prompt=exchange.messages[0]["content"], responses=["yes"], names=["a"], history=[]
        )
        expected = Answerer(loaded_run).answer("base", messages, Sampling(0, 0, 9, 0.0)).text
        assert found.aggregate == expected.replace("<", "‹").replace(">", "›").strip()


def test_a_judge_grades_by_the_servers_log_probabilities(loaded_run, server, tmp_path):
    rubric = tmp_path / "judge.yaml"
    rubric.write_text(INSTRUCTION.replace("responses", "response"))
    messages = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "p r"}]
    answerer = Answerer(loaded_run)
    (first, *_) = answerer.likelihoods(answerer.answer("agent-1", messages, Sampling(0, 0, 8, 0.0)), 20)
    likeliest = [(answerer.token_text(token), log) for token, log in first.likeliest]
    (worse, log_worse), (better, log_better) = [(text, log) for text, log in likeliest if text.isalnum()][:2]
    card = JudgeCard(
        name="served",
        kind="judge",
        model="agent-1",
        base_url=server.url,
        api_key_env=VARIABLE,
        rubric=str(rubric),
        grades=[worse, better],
    )
    (score,) = card.build(None, UNRECORDED).score(["p"], ["r"])
    assert score == pytest.approx(1 / (1 + torch.tensor(log_worse - log_better).exp().item()), abs=1e-4)
    refused = card.model_copy(update={"model": "team"}).build(None, UNRECORDED)
    with pytest.raises(RunStopped, match="logprobs: not supported for team"):
        refused.score(["p"], ["r"])
