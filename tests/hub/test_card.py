"""The card's text on reward models, prompts and controllers has no local paths or addresses."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import rlhf_marl

SECRET = "http://10.0.0.7:9000/internal"


def card_of(run: Path, to: Path, agent: int = 0) -> ModelCard:
    rlhf_marl.export(run, agent=agent, to=to)
    return ModelCard.load(to / "README.md")


@pytest.mark.parametrize(
    ("scorer", "shown"),
    [
        ({"kind": "sequence_classifier", "model": "org/rm", "input": "pair"}, "classifier org/rm |"),
        ({"kind": "callable", "function": "/home/alice/secret/scorers.py:f"}, "| Python function scorers.py:f |"),
        ({"kind": "callable", "function": "some.module:f"}, "| Python function some.module:f |"),
        (
            {"kind": "prototype", "model": "package:some_package/model", "good": ["yes"]},
            "by package:some\\_package/model |",
        ),
        ({"kind": "http", "url": SECRET}, "| a scoring server |"),
        ({"kind": "judge", "model": None, "base_url": SECRET}, "grades by the agents' base model |"),
        ({"kind": "judge", "model": "grader", "base_url": SECRET}, "grades by grader |"),
        ({"kind": "ensemble", "combine": "mean", "members": [{"card": "/home/me/a.yaml"}]}, "mean of a |"),
    ],
)
def test_reward_models_in_words(trained, tmp_path, scorer, shown):
    file = trained / "reward_models.json"
    first, second = json.loads(file.read_text())
    for key in ("function", "convention", "arguments", "conversational", "context"):
        del first[key]
    file.write_text(json.dumps([first | scorer, second]))
    text = card_of(trained, tmp_path / "out").text
    assert shown in text
    assert SECRET not in text
    assert "/home" not in text


def test_a_base_in_a_folder_is_named_in_a_sentence(finished, tmp_path):
    assert "\nIt is a LlamaForCausalLM in a local folder named tiny-llama" in card_of(finished, tmp_path / "out").text


def test_a_reward_model_trained_here_shows_how_far_to_trust_it(trained, tmp_path):
    folder = tmp_path / "models" / "harmless-1234"
    folder.mkdir(parents=True)
    held_out = {"accuracy": 0.9, "low": 0.75, "high": 0.96, "pairs": 40}
    (folder / "training.json").write_text(json.dumps({"held_out": held_out}))
    file = trained / "reward_models.json"
    first, second = json.loads(file.read_text())
    for key in ("function", "convention", "arguments", "conversational", "context"):
        del first[key]
    classifier = {"kind": "sequence_classifier", "model": str(folder), "input": "pair"}
    file.write_text(json.dumps([first | classifier, second]))
    text = card_of(trained, tmp_path / "out").text
    assert "classifier harmless-1234 (local); agrees with 90% of 40 held-out preference pairs (95%: 75 to 96) |" in text
    assert str(tmp_path) not in text


def change(run: Path, **keys: Any) -> None:
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


@pytest.mark.parametrize(
    ("prompts", "shown", "datasets"),
    [
        ({"source": "jsonl", "path": "/home/me/asked.jsonl"}, "a file named asked.jsonl.", None),
        (
            {"source": "datasets", "name": "org/questions", "column": "q", "revision": "abc"},
            "the data set org/questions, split train, column q, revision abc.",
            "org/questions",
        ),
        ({"source": "datasets", "name": "/home/me/data", "column": "q"}, "the data set data, split train", None),
    ],
)
def test_prompts_in_words(trained, tmp_path, prompts, shown, datasets):
    change(trained, prompts=prompts)
    card = card_of(trained, tmp_path / "out")
    assert shown in card.text
    assert "/home" not in card.text
    assert card.data.get("datasets") == datasets
    assert "began with the same question" not in card.text


def test_the_adapted_layers_in_words(trained, tmp_path):
    change(
        trained, lora={"rank": 2, "alpha": 4.0, "targets": r".*[qk]_proj", "exclude": ["up_proj"], "use_rslora": True}
    )
    text = card_of(trained, tmp_path / "out").text
    assert r"LoRA rank 2, alpha 4.0, on `.*[qk]_proj` except up\_proj, rank-stabilised |" in text


def test_the_controller_is_named_and_its_endpoint_is_not(trained, tmp_path):
    change(trained, controller={"kind": "openai", "model": "some-model", "base_url": SECRET})
    text = card_of(trained, tmp_path / "out").text
    assert "the controller (the model some-model behind an endpoint)" in text
    assert SECRET not in text


def test_a_model_behind_an_endpoint_may_be_a_folder(trained, tmp_path):
    change(trained, controller={"kind": "openai", "model": "/home/alice/models/chat", "base_url": SECRET})
    text = card_of(trained, tmp_path / "out").text
    assert "the model chat (local) behind an endpoint" in text
    assert "alice" not in text


def test_an_agent_that_began_from_an_adapter_says_so(trained, tmp_path):
    agents = yaml.safe_load((trained / "config.yaml").read_text())["agents"]
    agents[1]["adapter"] = "/home/me/runs/before/adapters/agent_0"
    change(trained, agents=agents)
    assert "| started from | an adapter named agent\\_0 |" in card_of(trained, tmp_path / "one", agent=1).text
    assert "began from" not in card_of(trained, tmp_path / "other", agent=0).text


def test_signs_of_reward_hacking_are_among_the_limits(trained, tmp_path):
    file = trained / "metrics.jsonl"
    assert "reward hacking" not in card_of(trained, tmp_path / "before").text
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"kl": 3.0 * row["response_tokens"]}) + "\n" for row in rows))
    text = card_of(trained, tmp_path / "after").text
    assert "KL to the base model was 3.000 nats per token" in text
    assert "reward hacking is likely" in text
