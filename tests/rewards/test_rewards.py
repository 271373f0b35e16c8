import math
from pathlib import Path

import pytest
import torch

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.rewards import build_reward_model, load_card, score_all
from rlhf_marl.rewards.prototype import Prototype, PrototypeCard
from rlhf_marl.rewards.python_callable import CallableCard

SHIPPED = sorted(str(p.relative_to(DATA_ROOT)) for p in (DATA_ROOT / "reward_models").glob("*.yaml"))
LOCAL = [name for name in SHIPPED if load_card(name, "test").kind in ("prototype", "callable")]
CARD = CallableCard(name="test", kind="callable", function="tests.conftest:length", scale=2.0, offset=-6.0)


class Scripted:
    """A reward model that returns what it is given."""

    def __init__(self, result):
        self.result = result

    def score(self, prompts, responses):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.mark.real_model
@pytest.mark.parametrize("name", LOCAL)
def test_shipped_cards_score(name):
    card = load_card(name, "test")
    texts = ["I'm sorry, I can't help with that.", "I will destroy you, damn idiot."]
    raw, scaled = score_all(card, build_reward_model(card), ["p", "p"], texts, agent=0)
    assert raw[0] > raw[1]
    assert scaled[0] == (raw[0] + card.offset) / card.scale


def test_scaling_of_appendix_d2_by_hand():
    """(raw + b_offset) / a_scaling with the paper's values for Gemma: (-4 + 10) / 6 = 1."""
    card = CallableCard(name="gemma", kind="callable", function="m:f", scale=6.0, offset=10.0)
    assert card.scaled(-4.0) == 1.0
    raw, scaled = score_all(CARD, build_reward_model(CARD), ["", ""], ["1234", "12345678"], agent=0)
    assert (raw, scaled) == ([4.0, 8.0], [-1.0, 1.0])


def test_prototype_by_hand():
    """Two-dimensional embeddings: good = (1, 0), bad = (0, 1): score = x - y of the unit vector."""
    table = {"good": (1.0, 0.0), "bad": (0.0, 1.0), "mixed": (0.6, 0.8)}
    card = PrototypeCard(name="p", kind="prototype", good=["good"], bad=["bad"])
    model = Prototype(card, lambda texts, batch_size: torch.tensor([table[t] for t in texts]))
    assert model.score(["", ""], ["good", "mixed"]) == pytest.approx([1.0, -0.2])
    only_good = PrototypeCard(name="p", kind="prototype", good=["good", "mixed"])
    model = Prototype(only_good, lambda texts, batch_size: torch.tensor([table[t] for t in texts]))
    assert model.score([""], ["good"]) == pytest.approx([0.8])  # (1 + 0.6) / 2


@pytest.mark.real_model
def test_padding_and_order_never_change_a_prototype_score():
    card = load_card("reward_models/harmless.yaml", "test")
    model = build_reward_model(card)
    texts = [
        "Short.",
        "A much longer sentence, with many more words in it than the others have, on purpose.",
        "Mid one.",
    ]
    together = model.score([""] * 3, texts)
    alone = [model.score([""], [text])[0] for text in texts]
    reverse = model.score([""] * 3, texts[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(reverse, abs=1e-5)
    assert all(math.isfinite(s) for s in model.score([""], [""]))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, float("nan")], r"returned nan, no finite number, for the text 'second'"),
        ([float("inf"), 1.0], r"returned inf, no finite number, for the text 'first'"),
        ([1.0, "high"], r"returned 'high', no finite number, for the text 'second'"),
        ([1.0, None], r"returned None, no"),
        ([1.0, 10**400], r"returned 1000000.*, no finite number, for the text 'second'"),
        ([1.0, 10**5000], r"returned int, no finite number, for the text 'second'"),
        ([1.0, 1e39], r"returned 1e\+39, too large for float32, for the text 'second'"),
        ([1.0], r"returned 1 scores for 2 responses; first text: 'first'"),
        (3.0, r"returned float for 2 responses"),
        (ValueError("no\nway"), r"raised ValueError: 'no\\nway'; first text: 'first'"),
    ],
)
def test_a_bad_score_names_agent_card_and_text(result, message):
    with pytest.raises(RunStopped, match=r"agent 4: reward model 'test' " + message) as caught:
        score_all(CARD, Scripted(result), ["p", "p"], ["first", "second"], agent=4)
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_not_a_bad_score():
    class Interrupted:
        def score(self, prompts, responses):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_all(CARD, Interrupted(), ["p"], ["r"], agent=0)


def test_tensors_are_scores_too():
    raw, _ = score_all(CARD, Scripted(torch.tensor([1.0, 2.0])), ["p", "p"], ["a", "b"], agent=0)
    assert raw == [1.0, 2.0]


def test_long_hostile_text_is_shown_bounded_and_escaped():
    with pytest.raises(RunStopped) as caught:
        score_all(CARD, Scripted([float("nan")]), ["p"], ["\x1b[31m\n" + "x" * 500], agent=0)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: oracle\nname: a\n",
            r"kind: 'oracle' is not allowed; choose 'sequence_classifier', 'trained', 'prototype', 'callable'",
        ),
        ("name: a\n", r"kind: missing"),
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


@pytest.mark.parametrize("function", ["no_such_module:f", "math:no_such_function", "math:pi"])
def test_a_function_that_is_none_is_refused(function):
    card = CallableCard(name="x", kind="callable", function=function)
    with pytest.raises(UsageError, match=r"card x: function: "):
        build_reward_model(card)


def test_a_score_that_its_scale_makes_too_large_is_refused():
    with pytest.raises(RunStopped, match="returned 1e\\+30, too large for float32"):
        score_all(CARD.model_copy(update={"scale": 1e-9}), Scripted([1e30]), ["p"], ["r"], agent=0)
