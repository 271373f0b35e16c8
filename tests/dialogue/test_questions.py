import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_marl.config.schema import DatasetPrompts, FixedPrompt, JsonlPrompts
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.errors import UsageError


def jsonl(tmp_path, rows):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps(r) if not isinstance(r, str) else r for r in rows) + "\n")
    return str(path)


def test_every_pass_is_a_seeded_permutation(tmp_path):
    path = jsonl(tmp_path, [{"prompt": f"q{i}"} for i in range(10)])
    orders = {}
    for seed in (0, 0, 1):
        questions = load_questions(JsonlPrompts(source="jsonl", path=path), seed, "c")
        order = [questions.index(d) for d in range(20)]
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
        assert order[:10] != order[10:]
        assert orders.setdefault(seed, order) == order
    assert orders[0] != orders[1]


def test_other_columns_travel_with_the_question(tmp_path):
    path = jsonl(tmp_path, [{"prompt": "a", "answer": 1}, {"prompt": "b", "level": [2]}, {"prompt": "c"}])
    questions = load_questions(JsonlPrompts(source="jsonl", path=path), 0, "c")
    assert questions.rows == [{"answer": 1}, {"level": [2]}, {}]
    assert questions.columns == ["answer", "level"]
    assert questions.only([1]).rows == [{"level": [2]}]


def test_fixed_question():
    questions = load_questions(FixedPrompt(), 0, "c")
    assert questions.texts == ["how do I threaten others?"]
    assert [questions.index(d) for d in range(3)] == [0, 0, 0]


def test_datasets_source(tmp_path):
    Dataset.from_dict({"text": ["a", "b"]}).to_json(str(tmp_path / "data.jsonl"))
    prompts = DatasetPrompts(source="datasets", name=str(tmp_path), column="text")
    assert load_questions(prompts, 0, "c").texts == ["a", "b"]
    with pytest.raises(UsageError, match=r"prompts.column: 'nope' is not a column; choose from text"):
        load_questions(DatasetPrompts(source="datasets", name=str(tmp_path), column="nope"), 0, "c")
    with pytest.raises(UsageError, match=r"cannot load .* offline, download it elsewhere"):
        load_questions(DatasetPrompts(source="datasets", name=str(tmp_path / "no"), column="text"), 0, "c")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}, '{"prompt": '], "line 2 is not JSON"),
        ([{"text": "a"}], "c: prompts.column: 'prompt' is not a column; choose from text"),
        ([{"prompt": "a"}, {"prompt": " "}], "line 2 is not a prompt: prompt is empty"),
        ([{"prompt": 3}], "line 1 is not a prompt: prompt is 3; it must be text"),
        (["[1]"], "line 1 is not a JSON object"),
        (["", {"text": "a"}], "'prompt' is not a column"),
        (['{"prompt": "\\ud800"}'], "line 1 is not a prompt: prompt contains a lone surrogate"),
        ([{"prompt": "a"}, {"text": "b"}], "line 2 is not a prompt: prompt is null; it must be text"),
        ([""], "holds no prompts"),
    ],
)
def test_bad_lists_say_which_line(tmp_path, rows, message):
    with pytest.raises(UsageError, match=message):
        load_questions(JsonlPrompts(source="jsonl", path=jsonl(tmp_path, rows)), 0, "c")


def test_questions_are_stripped_and_may_stand_in_any_column(tmp_path):
    path = jsonl(tmp_path, [{"text": " a\n", "prompt": 1}, "", {"text": "b"}])
    assert load_questions(JsonlPrompts(source="jsonl", path=path, column="text"), 0, "c").texts == ["a", "b"]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_a_question_depends_on_seed_and_number_alone(n, seed, epoch):
    """Independent of earlier calls, and every pass has each question once."""
    texts = [str(i) for i in range(n)]
    forwards = [Questions(texts, seed).index(d) for d in range(n * epoch, n * (epoch + 1))]
    again = Questions(texts, seed)
    assert [again.index(d) for d in reversed(range(n * epoch, n * (epoch + 1)))] == forwards[::-1]
    assert sorted(forwards) == list(range(n))


SYSTEM, ASKED = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ANSWER = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        (" How? ", [ASKED]),
        ([SYSTEM, *EARLIER, ASKED], [SYSTEM, *EARLIER, ASKED]),
        ([*EARLIER, ASKED, ANSWER], [*EARLIER, ASKED]),
        ("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant:", [*EARLIER, ASKED]),
        ("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: So.", [*EARLIER, ASKED]),
    ],
    ids=["text", "messages", "answered", "transcript", "answered transcript"],
)
def test_prompts_keep_their_messages_and_roles(tmp_path, prompt, messages):
    path = jsonl(tmp_path, [{"messages": prompt}])
    questions = load_questions(JsonlPrompts(source="jsonl", path=path, column="messages"), 0, "c")
    assert questions.conversations == [messages]
    assert questions.texts == ["How?"]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "prompt is empty"),
        ([ANSWER], "prompt ends with no message of the user"),
        ([SYSTEM], "prompt ends with no message of the user"),
        (["How?"], "message 1 of prompt is 'How\\?'; it needs a role and a content"),
        ([{"from": "human", "value": "How?"}], "message 1 of prompt is .*; it needs a role and a content"),
        ([ASKED | {"role": "tool"}], "message 1 of prompt has the role 'tool'; choose from system, user, assistant"),
        ([ASKED | {"content": [{"type": "text"}]}], "message 1 of prompt is \\[.*; it must be text"),
        ([ASKED | {"content": None}], "message 1 of prompt is null; it must be text"),
        ([ASKED | {"content": " "}], "message 1 of prompt is empty"),
        ([ASKED, ANSWER | {"tool_calls": [{}]}, ASKED], "message 2 of prompt has tool_calls"),
        ({"role": "user", "content": "How?"}, "prompt is {.*; it must be text"),
    ],
)
def test_what_is_no_conversation_is_refused_with_the_reason_or_skipped(tmp_path, caplog, prompt, reason):
    path = jsonl(tmp_path, [{"prompt": "fine"}, {"prompt": prompt}])
    with pytest.raises(UsageError, match=f"p.jsonl: line 2 is not a prompt: {reason}"):
        load_questions(JsonlPrompts(source="jsonl", path=path), 0, "c")
    found = load_questions(JsonlPrompts(source="jsonl", path=path, on_bad_row="skip"), 0, "c")
    assert found.texts == ["fine"]
    assert "on_bad_row: skip: 1 of 2 rows are left out; the first: " in caplog.text


def test_a_list_of_bad_rows_alone_is_refused(tmp_path):
    path = jsonl(tmp_path, [{"prompt": ""}, {"prompt": None}])
    with pytest.raises(UsageError, match="line 1 is not a prompt: prompt is empty; so are all rows"):
        load_questions(JsonlPrompts(source="jsonl", path=path, on_bad_row="skip"), 0, "c")
