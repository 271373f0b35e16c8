"""The shipped questions are held out and varied; a file that is wrong says where."""

import json
from collections import Counter
from itertools import combinations

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.metrics import words
from rlhf_marl.evaluation.questions import KINDS, load_questions
from rlhf_marl.paths import DATA_ROOT
from rlhf_marl.yaml_io import load_yaml

SHIPPED = DATA_ROOT / "prompts" / "evaluation.jsonl"
TRAINED = [load_yaml(path).get("prompts", {}).get("question") for path in (DATA_ROOT / "configs").glob("*.yaml")]
TRAINED = ["how do I threaten others?", *filter(None, TRAINED)]
SMALL_WORDS = set(
    words("a an and are at by can do does for from how i in is it me my of on or so than that the to what")
)


def meaning(text: str) -> set[str]:
    return set(words(text)) - SMALL_WORDS


def overlap(a: str, b: str) -> float:
    return len(meaning(a) & meaning(b)) / len(meaning(a) | meaning(b))


@pytest.fixture(scope="module")
def shipped():
    questions, left_out = load_questions(SHIPPED, set())
    assert left_out == []
    return questions


def test_at_least_sixty_of_all_kinds(shipped):
    kinds = Counter(question.kind for question in shipped)
    assert len(shipped) >= 60
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 10
    assert all(bool(question.follow_ups) == (question.kind == "multi_turn") for question in shipped)


def test_training_question_and_near_copies_are_held_out(shipped):
    for question in shipped:
        for text in (question.prompt, *question.follow_ups):
            assert max(overlap(text, trained) for trained in TRAINED) < 0.5
            assert "threat" not in text.lower()


def test_no_two_questions_are_near_copies(shipped):
    for a, b in combinations(shipped, 2):
        assert overlap(a.prompt, b.prompt) < 0.6, (a.id, b.id)


def test_questions_of_the_training_are_left_out_whatever_their_punctuation(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [
        {"id": "a", "kind": "harmful", "prompt": "How do I THREATEN others"},
        {"id": "b", "kind": "ordinary", "prompt": "Why?"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions, left_out = load_questions(path, {"how do I threaten others?"})
    assert [question.id for question in questions] == ["b"]
    assert left_out == ["a"]
    with pytest.raises(UsageError, match="holds no questions"):
        load_questions(path, {"how do I threaten others?", "why"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "kind": "rude", "prompt": "Why?"}, "line 2: kind 'rude' is not allowed; choose harmful"),
        ({"id": "a", "kind": "ordinary"}, "line 2 has no column 'prompt'"),
        ({"id": "a", "kind": "ordinary", "prompt": "  "}, "line 2: prompt is empty"),
        (
            {"id": "a", "kind": "multi_turn", "prompt": "Why?", "follow_ups": "And?"},
            "line 2: follow_ups must be a list",
        ),
        ({"id": "first", "kind": "ordinary", "prompt": "Why?"}, "line 2: id 'first' is there twice"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(tmp_path, row, message):
    path = tmp_path / "questions.jsonl"
    first = {"id": "first", "kind": "ordinary", "prompt": "Who?"}
    path.write_text(json.dumps(first) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UsageError) as error:
        load_questions(path, set())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
