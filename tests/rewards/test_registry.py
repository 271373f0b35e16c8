"""The registry of kinds, and reading of cards; files that a card names are found next to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.rewards import KINDS, build_reward_model, check_card, load_card, score_all
from rlhf_marl.rewards.python_callable import CallableCard
from tests.rewards.conftest import score, write
from tests.rewards.test_sequence_classifier import saved

SHIPPED = sorted(str(p.relative_to(DATA_ROOT)) for p in (DATA_ROOT / "reward_models").glob("*.yaml"))


LOCAL = [name for name in SHIPPED if load_card(name, "test").kind in ("prototype", "callable")]


def test_reading_the_shipped_cards_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from rlhf_marl.rewards import load_card\n"
        "print(*[load_card(name, 'test').name for name in sys.argv[1:]], sep=',')\n"
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, *SHIPPED]
    names, imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(names.split(",")) == len(SHIPPED) > 10
    assert imported == "set()"


@pytest.mark.real_model
@pytest.mark.parametrize("name", LOCAL)
def test_shipped_cards_score(name):
    card = load_card(name, "test")
    texts = ["I'm sorry, I can't help with that.", "I will destroy you, damn idiot."]
    raw, scaled = score_all(card, build_reward_model(card), ["p", "p"], texts, agent=0)
    assert raw[0] > raw[1]
    assert scaled[0] == (raw[0] + card.offset) / card.scale


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: oracle\nname: a\n",
            r"yaml: kind: 'oracle' is not allowed; choose 'sequence_classifier', 'trained', 'prototype', 'callable'",
        ),
        ("name: a\n", r"yaml: kind: missing"),
        ("kind: callable\nname: a\nfunction: m:f\nscale: 0.0\n", r"scale: 0.0 given; input should be greater than 0"),
        ("kind: callable\nname: a\nfunction: os.system\n", r"function: 'os.system' given"),
        ("kind: callable\nname: a\nfunction: m:f\nnope: 1\n", r": nope: unknown key"),
        ("kind: prototype\nname: a\ngood: []\n", r"good: \[\] given"),
        ("kind: callable\nname: ../a\nfunction: m:f\n", r"name: '../a' given"),
        ("kind: ensemble\nname: a\nmembers: [{card: {kind: oracle}}]\n", r": members.0.card.kind: 'oracle' is not"),
        (
            "kind: ensemble\nname: a\nmembers: [{card: 3}]\n",
            r": members.0.card: 3 given; input should be a card's path or a card",
        ),
        (
            "kind: ensemble\nname: a\nmembers: [{card: {kind: callable, name: b, function: m:f, scale: 0.0}}]\n",
            r": members.0.card.scale: 0.0 given; input should be greater than 0",
        ),
    ],
)
def test_card_mistakes_are_one_line(tmp_path: Path, text, message):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_card(str(path), "test")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_card_names_the_key_and_the_shipped_ones():
    with pytest.raises(UsageError, match=r"c.yaml: agents.1.reward_model: .* shipped: .*reward_models/harmless.yaml"):
        load_card("reward_models/harmles.yaml", "c.yaml: agents.1.reward_model")


def test_model_and_rubric(cards):
    saved(cards / "tiny", "deberta")
    assert score(write(cards / "a.yaml", kind="sequence_classifier", model="tiny", input="pair"))
    shutil.copy(DATA_ROOT / "prompts" / "judge.yaml", cards / "mine.yaml")
    card = load_card(write(cards / "j.yaml", kind="judge", rubric="mine.yaml"), "x")
    assert card.rubric == str(cards / "mine.yaml")


def test_each_kind_is_named_as_its_card_says():
    assert list(KINDS) == ["sequence_classifier", "trained", "prototype", "callable", "http", "judge", "ensemble"]
    for name, card in KINDS.items():
        assert card.model_fields["kind"].annotation.__args__ == (name,)


def test_plain_data_becomes_the_card_of_its_kind():
    card = check_card({"name": "a", "kind": "callable", "function": "m:f", "scale": 2.0}, "here")
    assert card == CallableCard(name="a", kind="callable", function="m:f", scale=2.0)
    with pytest.raises(UsageError, match=r"^here: function: missing; it is required$"):
        check_card({"name": "a", "kind": "callable"}, "here")


def test_a_kind_that_is_registered_later_is_read(monkeypatch):
    from typing import Literal

    class Added(CallableCard):
        kind: Literal["added"]

    content = {"name": "a", "kind": "added", "function": "m:f"}
    with pytest.raises(UsageError, match="kind: 'added' is not allowed; choose 'sequence_classifier'"):
        check_card(content, "here")
    monkeypatch.setitem(KINDS, "added", Added)
    assert type(check_card(content, "here")) is Added
