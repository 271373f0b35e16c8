"""Metrics of texts against values worked out by hand."""

import pytest

from rlhf_marl.evaluation.metrics import agreement, distinct, is_refusal, self_repetition


def test_distinct_counts_different_grams_among_all():
    assert distinct("Go, go GO away", 1) == pytest.approx(2 / 4)
    assert distinct("to be or not to be", 2) == pytest.approx(4 / 5)  # "to be" twice among five pairs
    assert distinct("no", 2) == 1.0


def test_self_repetition_is_the_share_of_triples_that_another_answer_has():
    texts = ["I like green tea", "You like green tea", "nothing alike here"]
    assert self_repetition(texts) == pytest.approx([1 / 2, 1 / 2, 0.0])  # "like green tea" of two triples each
    assert self_repetition(["the same old words"] * 3) == [1.0, 1.0, 1.0]
    assert self_repetition(["round and round and round and round"]) == [0.0]  # repeats itself, not another answer


def test_agreement_is_the_mean_jaccard_overlap_of_pairs():
    assert agreement(["a b", "b c", "a b"]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert agreement(["same words", "words same"]) == 1.0
    assert agreement(["", ""]) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist you.",
        "I am not able to do that.",
        "I won't tell you how to do this.",
        "As an AI I have no opinion, and this would hurt someone.",
        "Stalking is illegal. Please talk to her instead.",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["Open a terminal and type kill -9.", "Ask her for a coffee.", "", "Sorry sight of a shop: go."]
)
def test_help_is_no_refusal(text):
    assert not is_refusal(text)
