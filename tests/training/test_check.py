"""What checking finds without weights: the mistakes that training would report, and what is done on first use."""

import pytest
import torch
import yaml

from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import load_card
from rlhf_marl.training.check import check_experiment


def check(content):
    return check_experiment(check_config(content, "tiny"), "tiny", torch.device("cpu"))


def test_a_good_config_needs_nothing(tiny_content):
    assert check(tiny_content).needs == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": {"name": "."}}, "tiny: model.name: '.' is not a model folder"),
        ({"agents": [{"reward_model": "no.yaml"}]}, "tiny: agents.0.reward_model: 'no.yaml' does not exist"),
        ({"lora": {"targets": ["nope"]}}, "tiny: lora.targets: 'nope' is not a linear layer"),
        ({"prompts": {"question": "long " * 30}}, "tiny: prompts: prompt 1 ('long "),
        ({"generation": {"max_prompt_tokens": 600}}, "tiny: generation: max_prompt_tokens + max_new_tokens is 632"),
        ({"topology": {"graph": "explicit", "edges": []}}, "tiny: topology: graph: explicit"),
        ({"controller": {"kind": "scripted", "next_prompts": ["{{ nope }}"]}}, "tiny: controller"),
        ({"controller": {"kind": "shared", "templates": "no.yaml"}}, "tiny: controller.templates: 'no.yaml'"),
        ({"controller": {"kind": "openai", "model": "m", "api_key_env": "NO_KEY"}}, "variable NO_KEY is not set"),
    ],
)
def test_a_mistake_is_the_line_that_training_reports(tiny_content, changes, line):
    with pytest.raises(UsageError) as refused:
        check(tiny_content | changes)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_reward_function_that_does_not_exist(tiny_content, tmp_path):
    card = {"name": "x", "kind": "callable", "function": "tests.conftest:gone"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(UsageError, match="gone"):
        check(tiny_content | {"agents": [{"reward_model": str(tmp_path / "x.yaml")}]})


def test_first_use_is_announced(tiny_content, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    trained = {"name": "kind", "kind": "trained", "data": str(pairs), "base": "org/gone"}
    (tmp_path / "kind.yaml").write_text(yaml.safe_dump(trained))
    checked = check(tiny_content | {"agents": [{"reward_model": str(tmp_path / "kind.yaml")}]})
    assert checked.needs == [
        "kind: trains on first use",
        "org/gone: is downloaded from the Hub; if it is gated, request access and set HF_TOKEN",
    ]
    assert checked.forecast.unknown == ["org/gone"]


def test_judges_of_validations_are_announced(tiny_content, tmp_path, monkeypatch):
    """They count as the agents' reward models do."""
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    trained = {"name": "judge", "kind": "trained", "data": str(tmp_path / "pairs.jsonl"), "base": "org/gone"}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(trained))
    config = check_config(tiny_content, "c")
    judge = load_card(str(tmp_path / "judge.yaml"), "c")
    checked = check_experiment(config, "c", torch.device("cpu"), [judge])
    assert checked.needs[0] == "judge: trains on first use"
    assert checked.forecast.unknown == ["org/gone"]
