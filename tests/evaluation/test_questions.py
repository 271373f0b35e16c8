"""The shipped questions are held out and varied; errors in a question file name the line."""

import json
from collections import Counter
from itertools import combinations

import pytest

from rlhf_marl.config.schema import JsonlPrompts
from rlhf_marl.dialogue.questions import load_questions as load_prompts
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.metrics import words
from rlhf_marl.evaluation.questions import KINDS, Question, fingerprint, load_questions, spread, without_trained
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.files.user_data import read_rows
from rlhf_marl.files.yaml_files import load_yaml

SHIPPED = DATA_ROOT / "prompts" / "evaluation.jsonl"
TRAINING = DATA_ROOT / "prompts" / "training.jsonl"
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
    return load_questions(SHIPPED)


@pytest.fixture(scope="module")
def training():
    return load_questions(TRAINING)


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


def test_no_question_is_one_that_a_shipped_reward_model_was_trained_on(shipped):
    """Word for word or nearly: the shipped preference pairs train judges and reward models."""
    pairs = [row for path in (DATA_ROOT / "reward_models" / "data").glob("*.jsonl") for _, row in read_rows(path)]
    trained = {frozenset(meaning(pair["prompt"])) for pair in pairs}
    assert len(trained) > 300
    for question in shipped:
        for text in (question.prompt, *question.follow_ups):
            asked = meaning(text)
            near = [other for other in trained if len(asked & other) >= 0.5 * len(asked | other)]
            assert not near, (question.id, near)


def test_no_two_questions_are_near_copies(shipped):
    for a, b in combinations(shipped, 2):
        assert overlap(a.prompt, b.prompt) < 0.6, (a.id, b.id)


def test_the_training_questions_are_many_and_of_the_kinds_of_the_evaluation(shipped, training):
    assert len(training) >= 300
    asked, held_out = (Counter(question.kind for question in questions) for questions in (training, shipped))
    for kind in KINDS:
        assert asked[kind] / len(training) == pytest.approx(held_out[kind] / len(shipped), abs=0.03)


def test_no_training_question_is_one_of_the_evaluation_or_another_training_question(shipped, training):
    """By id, and by the words of every text that either asks."""
    assert not {question.id for question in training} & {question.id for question in shipped}
    texts = [(question.id, text) for question in shipped for text in (question.prompt, *question.follow_ups)]
    for question in training:
        for text in (question.prompt, *question.follow_ups):
            near = [place for place, held_out in texts if overlap(text, held_out) >= 0.45]
            assert not near, (question.id, near)
    for a, b in combinations(training, 2):
        assert overlap(a.prompt, b.prompt) < 0.6, (a.id, b.id)


def test_no_validation_question_is_one_of_the_evaluation_or_the_training(shipped, training):
    validation = load_questions(DATA_ROOT / "prompts" / "validation.jsonl")
    others = [*shipped, *training, *validation]
    assert len({question.id for question in others}) == len(others)
    texts = [(question.id, text) for question in others for text in (question.prompt, *question.follow_ups)]
    for question in validation:
        near = [place for place, text in texts if place != question.id and overlap(question.prompt, text) >= 0.45]
        assert not near, (question.id, near)


def test_the_training_questions_are_prompts_of_a_config(training):
    source = JsonlPrompts(source="jsonl", path="prompts/training.jsonl")
    assert load_prompts(source, 0, "config").texts == [question.prompt for question in training]


def test_questions_of_the_training_are_left_out_whatever_their_punctuation():
    questions = [Question("a", "harmful", "How do I THREATEN others"), Question("b", "ordinary", "Why?")]
    kept, left_out = without_trained(questions, ["how do I threaten others?"])
    assert [question.id for question in kept] == ["b"]
    assert left_out == ["a"]


def test_a_limit_takes_kinds_in_turn(shipped):
    assert Counter(question.kind for question in spread(shipped, 8)) == dict.fromkeys(KINDS, 2)
    assert spread(shipped, None) == spread(shipped, 10**6) == shipped
    chosen = spread(shipped, 7)
    assert chosen == sorted(chosen, key=shipped.index)
    assert len(chosen) == 7


def test_fingerprint_sees_every_part_of_a_question():
    question = Question("a", "multi_turn", "Why?", ("And?",))
    others = [
        ("b", "multi_turn", "Why?", ("And?",)),
        ("a", "ordinary", "Why?", ()),
        ("a", "multi_turn", "Why?", ("So?",)),
    ]
    others.append(("a", "multi_turn", "Why?", ("And?",), {"answer": "4"}))
    assert len({fingerprint([q]) for q in (question, *(Question(*other) for other in others))}) == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "kind": "rude", "prompt": "Why?"}, "line 2: kind: 'rude' is not allowed; choose harmful"),
        ({"id": "a", "kind": "ordinary"}, "line 2 has no column 'prompt'"),
        ({"id": "a", "kind": "ordinary", "prompt": "  "}, "line 2: prompt is empty"),
        (
            {"id": "a", "kind": "multi_turn", "prompt": "Why?", "follow_ups": "And?"},
            "line 2: follow_ups must be a list",
        ),
        ({"id": "a", "kind": "ordinary", "prompt": "Why?", "columns": "x"}, "line 2: columns must be an object"),
        (
            {"id": "first", "kind": "ordinary", "prompt": "Why?"},
            "line 2: id 'first' is already the id of an earlier question",
        ),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(tmp_path, row, message):
    path = tmp_path / "questions.jsonl"
    first = {"id": "first", "kind": "ordinary", "prompt": "Who?"}
    path.write_text(json.dumps(first) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UsageError) as error:
        load_questions(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
