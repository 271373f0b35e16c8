"""Metrics of texts against values worked out by hand."""

import pytest

from rlhf_marl.evaluation.metrics import agreement, distinct, self_repetition


def test_distinct_counts_different_grams_among_all():
    assert distinct("Go, go GO away", 1) == pytest.approx(2 / 4)
    assert distinct("to be or not to be", 2) == pytest.approx(4 / 5)  # "to be" twice among five pairs
    assert distinct("no", 2) == 1.0
    assert distinct("...", 1) == 0.0


def test_self_repetition_is_the_share_of_grams_that_another_dialogue_has():
    dialogues = [["I like green tea", "not alike"], ["You like green tea"], ["nothing here"]]
    assert self_repetition(dialogues, 3) == [[1 / 2, 0.0], [1 / 2], [0.0]]  # "like green tea" of two triples each
    assert self_repetition([["Sorry."], ["sorry"], ["", "Sorry"]], 4) == [[1.0], [1.0], [0.0, 1.0]]
    assert self_repetition([["a b c d", "a b c d"], ["e"]], 4) == [[0.0, 0.0], [0.0]]  # within a dialogue only


def test_agreement_is_the_mean_jaccard_overlap_of_pairs():
    assert agreement(["a b", "b c", "a b"]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert agreement(["same words", "words same"]) == 1.0
    assert agreement(["", ""]) == 1.0
