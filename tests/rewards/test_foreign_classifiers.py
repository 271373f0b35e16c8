"""Classifiers that others made: the table of docs/compatibility.md, row by row, with transformers as the reference."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    ByT5Tokenizer,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.loading import context_of
from rlhf_marl.rewards import build_reward_model, check_card
from rlhf_marl.rewards.labels import read_label
from rlhf_marl.rewards.prototype import load_encoder
from rlhf_marl.rewards.sequence_classifier import _scores
from rlhf_marl.rewards.trained import TrainedCard
from rlhf_marl.rewards.training import train_reward_model
from tests.conftest import tiny_tokenizer
from tests.rewards.test_sequence_classifier import HEADS, SHAPE, end_padded_tokenizer, llama, pair_tokenizer
from tests.tables import table

RESULTS = dict(table("Reward models"))
NAMES = {0: "bad", 1: "neutral", 2: "good"}
TRIED = set()


def tries(situation):
    TRIED.add(situation)
    return lambda test: test


def test_the_page_lists_what_is_tried():
    assert set(RESULTS) == TRIED


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scorer(folder, kind="pair", **options):
    content = {"name": "x", "kind": "sequence_classifier", "model": folder, "input": kind, "device": "cpu"}
    return build_reward_model(check_card(content | options, "x.yaml"))


def refused(situation, call):
    result, _, reason = RESULTS[situation].partition(": ")
    assert result == "refused"
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture
def three(tmp_path):
    """A classifier with the labels bad, neutral and good, and its logits for ("hi?", "fine")."""
    torch.manual_seed(0)
    labels = {"num_labels": 3, "id2label": NAMES, "label2id": {name: i for i, name in NAMES.items()}}
    model = BertForSequenceClassification(BertConfig(**SHAPE | HEADS | {"type_vocab_size": 2} | labels)).eval()
    with torch.no_grad():
        logits = model(**pair_tokenizer()("hi?", "fine", return_tensors="pt")).logits[0]
    return saved(tmp_path, model, pair_tokenizer()), logits


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (2, lambda z: z[2]),
        ("good", lambda z: z[2]),
        ("P(good) - P(bad)", lambda z: z.softmax(-1)[2] - z.softmax(-1)[0]),
        ("-0.5*logit(neutral)+2 * P( good )", lambda z: 2 * z.softmax(-1)[2] - 0.5 * z[1]),
    ],
)
@tries("several labels, and `label: 1`, `label: good` or `label: P(good) - P(bad)` in the card")
def test_a_label_or_a_sum_of_labels(three, label, expected):
    folder, logits = three
    assert scorer(folder, label=label).score(["hi?"], ["fine"])[0] == pytest.approx(float(expected(logits)), abs=1e-5)


@tries("several labels, each with a probability of its own")
def test_independent_labels(three):
    folder, logits = three
    model = AutoModelForSequenceClassification.from_pretrained(folder, problem_type="multi_label_classification")
    model.save_pretrained(folder)
    found = scorer(folder, label="P(good) - P(bad)").score(["hi?"], ["fine"])[0]
    assert found == pytest.approx(float(logits.sigmoid()[2] - logits.sigmoid()[0]), abs=1e-5)


@tries("several labels, and none chosen")
def test_several_labels_need_a_choice(three):
    refused("several labels, and none chosen", lambda: scorer(three[0]))


@pytest.mark.parametrize(
    "label",
    ["great", 3, "P(great)", "P(good) P(bad)", "P(good) -", "__import__('os')", "P(good) ** 2", "3", "(P(good))"],
)
@tries("a `label` that is no label and no such sum")
def test_a_label_that_is_none(three, label):
    with pytest.raises(
        UsageError, match=r"card x: label: .*choose from 0 \(bad\), 1 \(neutral\), 2 \(good\)"
    ) as caught:
        scorer(three[0], label=label)
    assert "\n" not in str(caught.value)
    assert RESULTS["a `label` that is no label and no such sum"] == "refused, with the labels"


def test_names_that_look_like_numbers_or_sums_are_names():
    assert read_label("0", {0: "1", 1: "0"}).logits == [0.0, 1.0]
    assert read_label("P(x)", {0: "P(x)", 1: "x"}).logits == [1.0, 0.0]
    assert read_label("P(1)", {0: "no", 1: "yes"}).probabilities == [0.0, 1.0]


@tries("positions that begin at an offset, such as RoBERTa's 514 for 512 tokens")
def test_positions_that_begin_at_an_offset(tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(**SHAPE | HEADS | {"max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 2})
    model = RobertaForSequenceClassification(config).eval()
    assert context_of(model) == 40
    folder = saved(tmp_path, model, pair_tokenizer())
    reward_model = scorer(folder)
    ids = reward_model._inputs("x" * 99, "fine")["input_ids"]
    assert len(ids) == 40
    reward_model.score(["x" * 99, "y"], ["fine", "good"])
    assert load_encoder(folder, "x")(["a" * 99], 1).shape == (1, 32)


def bloom():
    return BloomForSequenceClassification(
        BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0)
    )


def t5():
    ends = {"eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}
    return T5ForSequenceClassification(
        T5Config(vocab_size=260, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, num_labels=1, **ends)
    )


@pytest.mark.parametrize("create", [bloom, t5])
@tries("a config without `max_position_embeddings`, as BLOOM's and T5's")
def test_configs_without_a_number_of_positions(tmp_path, create):
    torch.manual_seed(0)
    model, tokenizer = create().eval(), pair_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    inputs = [("hi?", "fine"), ("what is the longest of all?", "a long answer, too")]
    expected = []
    for prompt, response in inputs:
        with torch.no_grad():
            expected.append(model(**tokenizer(prompt, response, return_tensors="pt")).logits.item())
    reward_model = scorer(saved(tmp_path, model, tokenizer))
    assert reward_model.score(*zip(*inputs, strict=True)) == pytest.approx(expected, abs=1e-4)
    assert reward_model.cut == 0


@tries("a tokenizer without offsets")
def test_a_tokenizer_without_offsets(tmp_path):
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**SHAPE | HEADS | {"vocab_size": 400, "max_position_embeddings": 30})
    )
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    reward_model = scorer(saved(tmp_path, model, tokenizer))
    ids = reward_model._inputs("x" * 50 + "é", "fine")["input_ids"]
    assert len(ids) == 30
    assert reward_model._tokenizer.decode(ids, skip_special_tokens=True) == "x" * 22 + "é" + "fine"
    assert reward_model.score(["x" * 50], ["y" * 99])


@tries("the output of a repository's own code, with `score` instead of logits")
def test_the_output_of_a_repositorys_own_code():
    column = torch.tensor([[1.0], [2.0]])
    assert _scores(SimpleNamespace(score=column[:, 0]), 2, "x").tolist() == [[1.0], [2.0]]
    assert _scores(SimpleNamespace(logits=None, end_scores=column), 2, "x").tolist() == [[1.0], [2.0]]
    per_token = SimpleNamespace(scores=torch.zeros(2, 7, 1), end_scores=column)  # as of a model with a value per token
    assert _scores(per_token, 2, "x").tolist() == [[1.0], [2.0]]
    with pytest.raises(UsageError, match="x: its output has no logits or score for each text; it is SimpleNamespace"):
        _scores(SimpleNamespace(loss=1), 2, "x")


@tries("a tokenizer with more tokens than the embedding of the classifier")
def test_a_tokenizer_that_is_too_large(tmp_path):
    tokenizer = pair_tokenizer()
    tokenizer.add_tokens(["word", "other"])
    model = BertForSequenceClassification(BertConfig(**SHAPE | HEADS))
    folder = saved(tmp_path, model, tokenizer)
    refused("a tokenizer with more tokens than the embedding of the classifier", lambda: scorer(folder))


@tries("a pair of `reward train` that fits `max_tokens` but not the base")
def test_training_on_more_tokens_than_the_base_reads(tmp_path):
    model = BertForSequenceClassification(BertConfig(**SHAPE | HEADS | {"max_position_embeddings": 30}))
    base = saved(tmp_path / "base", model, pair_tokenizer())
    data = tmp_path / "pairs.csv"
    data.write_text("prompt,chosen,rejected\n" + "".join(f"q{i},{'y' * 30},n\n" for i in range(12)))
    card = TrainedCard(name="x", kind="trained", data=str(data), base=base)
    situation = "a pair of `reward train` that fits `max_tokens` but not the base"
    refused(situation, lambda: train_reward_model(card, tmp_path / "out", "card x"))


DIALOGUE = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "q"},
]


@tries("the key `context: dialogue` in the card")
def test_the_whole_dialogue_is_scored_with_its_roles(tmp_path):
    torch.manual_seed(3)
    folder = saved(tmp_path, llama(), end_padded_tokenizer())
    reward_model = scorer(folder, "chat", context="dialogue")
    answer = [{"role": "assistant", "content": "y"}]
    expected = tiny_tokenizer().apply_chat_template(DIALOGUE + answer, return_dict=True)["input_ids"]
    assert reward_model._inputs(DIALOGUE, "y")["input_ids"] == expected
    assert reward_model.score([DIALOGUE], ["y"]) != pytest.approx(reward_model.score(["q"], ["y"]), abs=1e-4)
