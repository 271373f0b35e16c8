"""Derived junk, by hand and by what cannot be so by chance."""

from collections import Counter

import pytest

from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.files.user_data import read_rows
from rlhf_marl.rewards.junk import DERIVED, derive, derive_in_turn
from tests.rewards.pairs import pair

ANSWER = "Put the rice in cold water, stir it well, and pour the water away. Do it twice."
WORDS = ANSWER.split()


def texts(kind, seed=0, answer=ANSWER):
    return [found.texts[2] for found in derive([pair("How do I wash rice?", answer, "no")] * 20, kind, seed)]


def test_the_pair_keeps_prompt_and_answer_and_names_its_kind():
    (found,) = derive([pair("q", ANSWER, "no")], "shuffled")
    assert (found.texts[:2], found.junk) == (("q", ANSWER), "shuffled")


def test_echo_is_the_question():
    assert set(texts("echo")) == {"How do I wash rice?"}


def test_cut_answers_stop_within_the_answer_and_without_a_mark():
    """Of 17 words, 5 to 15; not after the 13th, which ends a sentence."""
    found = [*texts("cut"), *texts("cut", seed=1), *texts("cut", seed=2)]
    assert len(set(found)) > 3
    for text in found:
        assert ANSWER.startswith(text)
        assert 5 <= len(text.split()) <= 15
        assert text[-1].isalpha()
        assert not text.endswith("away")


def test_repeated_answers_say_four_words_to_the_answers_length():
    for text in texts("repeated"):
        said = text.split()
        assert len(said) == 17
        assert said[:13] == said[4:]
        assert " ".join(said[:4]) in ANSWER
    assert (
        texts("repeated", answer="a b c d e f g h i")[0].split()[4:8]
        == texts("repeated", answer="a b c d e f g h i")[0].split()[:4]
    )


def test_shuffled_answers_have_the_same_words_in_another_order():
    found = texts("shuffled")
    assert all(Counter(text.split()) == Counter(WORDS) for text in found)
    assert ANSWER not in found
    assert len(set(found)) == 20


@pytest.mark.parametrize("kind", DERIVED)
def test_the_seed_decides(kind):
    assert texts(kind) == texts(kind)
    assert kind == "echo" or texts(kind) != texts(kind, seed=1)


def test_short_answers_and_those_of_several_messages_give_none():
    pairs = [pair("q", "just a few words, too short here", "no"), pair("q", [ANSWER, "And?", ANSWER], "no")]
    assert [derive(pairs, kind) for kind in DERIVED] == [[]] * len(DERIVED)


def test_the_kinds_take_turns():
    pairs = [pair(f"q{i}", ANSWER, "no") for i in range(5)]
    found = {(made.texts[0], made.junk) for made in derive_in_turn(pairs, ["echo", "cut"])}
    assert found == {("q0", "echo"), ("q1", "cut"), ("q2", "echo"), ("q3", "cut"), ("q4", "echo")}


def rows(name):
    return [row for _, row in read_rows(DATA_ROOT / "reward_models" / "data" / f"{name}.jsonl")]


def test_the_shipped_junk_is_of_every_kind_and_never_the_same_twice():
    junk = rows("junk")
    kinds = Counter(row["junk"] for row in junk)
    assert set(kinds) == {"word_salad", "gibberish", "fragments", "apologies", "other_language", "praise"}
    assert min(kinds.values()) >= 60
    assert len({row["prompt"] for row in junk}) >= 300
    assert len({row["rejected"] for row in junk}) == len(junk)


def test_the_shipped_gate_has_every_kind_and_nothing_of_it_is_trained_on():
    gate = rows("gate")
    assert {row["junk"] for row in gate} == {row["junk"] for row in rows("junk")}
    for kind, n in Counter(row["junk"] for row in gate).items():
        assert n >= 60
        assert len({row["rejected"] for row in gate if row["junk"] == kind}) >= 30
    names = ("junk", "harmless", "helpful", "courteous")
    trained = {text for name in names for row in rows(name) for text in row.values()}
    assert len(trained) > 1500
    asked = {row["prompt"] for _, row in read_rows(DATA_ROOT / "prompts" / "training.jsonl")}
    for row in gate:
        assert not {row["prompt"], row["chosen"], row["rejected"]} & (trained | asked)
