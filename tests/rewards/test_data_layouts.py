"""Layouts of preference pairs and prompts: the tables of docs/compatibility.md, row by row, and TRL as a reference."""

import json
import logging
import re

import pytest
from datasets import load_dataset
from trl.data_utils import maybe_extract_prompt

from rlhf_marl.config.schema import JsonlPrompts
from rlhf_marl.dialogue.questions import load_questions
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.policy.templates import adapt_template
from rlhf_marl.rewards import load_card
from rlhf_marl.rewards.preferences import load_pairs
from rlhf_marl.rewards.sequence_classifier import classifier_inputs
from rlhf_marl.rewards.trained import TrainedCard, cached_folder
from rlhf_marl.rewards.training import train_reward_model
from tests.conftest import tiny_tokenizer
from tests.rewards.pairs import pair
from tests.rewards.test_sequence_classifier import saved
from tests.tables import table

PAIRS = [(layout, json.loads(row), result) for layout, row, result in table("Preference pairs")]
PROMPTS = [(layout, json.loads(value), result) for layout, value, result in table("Prompts")]
SYSTEM = {"role": "system", "content": "s"}


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("layout", "row", "result"), PAIRS, ids=[layout for layout, _, _ in PAIRS])
def test_pairs_of_every_layout(tmp_path, layout, row, result):
    path = written(tmp_path, row)
    if result.startswith("works"):
        (found,) = load_pairs(path, "x")
        before = [SYSTEM] if "system message" in layout else []
        assert found.prompt == [*before, {"role": "user", "content": "q"}]
        assert (found.chosen, found.rejected) == (pair("q", "y", "n").chosen, pair("q", "y", "n").rejected)
    else:
        reason = re.escape(result.removeprefix("refused: "))
        with pytest.raises(UsageError, match=f"^{path}: line 1 is not a preference pair: {reason}") as caught:
            load_pairs(path, "x")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("layout", "value", "result"), PROMPTS, ids=[layout for layout, _, _ in PROMPTS])
def test_prompts_of_every_layout(tmp_path, layout, value, result):
    prompts = JsonlPrompts(source="jsonl", path=written(tmp_path, {"prompt": value}))
    if result.startswith("works"):
        (found,) = load_questions(prompts, 0, "c").conversations
        assert found[-1] == {"role": "user", "content": "q"}
        earlier = {"messages, with a system message and earlier turns": ["system", "user", "assistant"]}
        earlier["a transcript of hh-rlhf"] = ["user", "assistant"]
        assert [message["role"] for message in found[:-1]] == earlier.get(layout, [])
    else:
        with pytest.raises(UsageError, match="line 1 is not a prompt: " + re.escape(result.removeprefix("refused: "))):
            load_questions(prompts, 0, "c")


@pytest.mark.parametrize("row", [row for layout, row, _ in PAIRS if layout.startswith("conversational, implicit")])
def test_an_implicit_prompt_is_what_trl_takes(tmp_path, row):
    theirs = maybe_extract_prompt(row)
    (found,) = load_pairs(written(tmp_path, row), "x")
    assert {"prompt": found.prompt, "chosen": found.chosen, "rejected": found.rejected} == theirs


@pytest.mark.parametrize("name", ["courteous", "harmless", "helpful", "junk"])
def test_the_shipped_pairs_are_those_that_datasets_reads(name):
    path = str(DATA_ROOT / "reward_models" / "data" / f"{name}.jsonl")
    theirs = load_dataset("json", data_files=path, split="train")
    columns = [[text.strip() for text in theirs[key]] for key in ("prompt", "chosen", "rejected")]
    assert [found.texts for found in load_pairs(path, "x")] == list(zip(*columns, strict=True))


def test_the_shipped_prompts_are_those_that_datasets_reads():
    path = str(DATA_ROOT / "prompts" / "training.jsonl")
    theirs = load_dataset("json", data_files=path, split="train")
    assert load_questions(JsonlPrompts(source="jsonl", path=path), 0, "c").texts == list(theirs["prompt"])


def test_roles_reach_the_reward_models_template():
    """TRL's RewardTrainer templates prompt and response as one conversation."""
    tokenizer = tiny_tokenizer()
    messages = [SYSTEM, *pair(["a", "b", "q"], "y", "n").prompt]
    answer = [{"role": "assistant", "content": "y"}]
    expected = tokenizer.apply_chat_template(messages + answer, return_dict=True)["input_ids"]
    options = {"kind": "chat", "limit": 512, "end_token": False}
    assert classifier_inputs(tokenizer, messages, answer, **options)[0]["input_ids"] == expected
    assert "system" in tokenizer.decode(expected)
    alone = classifier_inputs(tokenizer, "q", "y", **options)[0]["input_ids"]
    assert alone == tokenizer.apply_chat_template([messages[-1], *answer], return_dict=True)["input_ids"]


def test_a_system_message_that_a_template_refuses_goes_into_the_first_message_of_the_user():
    tokenizer = tiny_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    adapt_template(tokenizer, "x")
    options = {"kind": "chat", "limit": 512, "end_token": False}
    folded = classifier_inputs(tokenizer, "s\n\nq", "y", **options)
    assert classifier_inputs(tokenizer, [SYSTEM, *pair("q", "y", "n").prompt], "y", **options) == folded


def test_other_columns_and_bad_rows(tmp_path, caplog):
    good = {"question": "q", "better": "y", "worse": "n"}
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    path = written(tmp_path, good, good | {"worse": None}, good | {"better": ""}, {"question": "q"}, good)
    with pytest.raises(UsageError, match=r"line 2 is not a preference pair: worse is null; it must be text"):
        load_pairs(path, "x", columns=names)
    with caplog.at_level(logging.WARNING, "rlhf_marl"):
        assert load_pairs(path, "x", columns=names, on_bad_row="skip") == [pair("q", "y", "n")] * 2
    assert "on_bad_row: skip: 3 of 5 rows are left out; the first: " in caplog.text
    with pytest.raises(UsageError, match="no column 'chosen'"):
        load_pairs(path, "x", columns={"prompt": "question"})
    with pytest.raises(UsageError, match="no column 'ask'"):
        load_pairs(path, "x", columns=names | {"prompt": "ask"})
    path = written(tmp_path, *[good | {"worse": ""}] * 2)
    with pytest.raises(UsageError, match=r"line 1 is not a preference pair: worse is empty; so are all rows"):
        load_pairs(path, "x", columns=names, on_bad_row="skip")


@pytest.fixture
def recipe(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "a" * (i + 1), "rejected": "z" * (i + 1)} for i in range(8)]
    rows.append({"prompt": "q8", "chosen": "a" * 600, "rejected": "z"})
    base = saved(tmp_path / "base", "llama")["model"]
    content = {"name": "t", "kind": "trained", "data": written(tmp_path, *rows), "base": base, "input": "chat"}
    return TrainedCard(**content, epochs=0.2, held_out=0.5)


@pytest.mark.parametrize(("on_bad_row", "done", "used"), [("refuse", "cut from the left", 9), ("skip", "left out", 8)])
def test_pairs_that_are_too_long_are_counted(recipe, tmp_path, caplog, on_bad_row, done, used):
    measured = train_reward_model(recipe.model_copy(update={"on_bad_row": on_bad_row}), tmp_path / "out", "card")
    assert f"reward model t: 1 of 9 pairs are longer than 256 tokens: {done}" in caplog.text
    assert measured["trained_on"] + measured["held_out"]["pairs"] == used


def test_a_card_says_columns_and_bad_rows(recipe, tmp_path):
    card = recipe.model_dump(mode="json") | {"columns": {"chosen": "better"}, "on_bad_row": "skip"}
    (tmp_path / "card.yaml").write_text(json.dumps(card))
    found = load_card(str(tmp_path / "card.yaml"), "x")
    assert (found.columns, found.on_bad_row) == ({"chosen": "better"}, "skip")
    (tmp_path / "card.yaml").write_text(json.dumps(card | {"columns": {"answer": "better"}}))
    with pytest.raises(UsageError, match="columns"):
        load_card(str(tmp_path / "card.yaml"), "x")


def test_a_changed_folder_of_pairs_trains_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "q", "chosen": "y", "rejected": "n"}\n')
    card = recipe.model_copy(update={"data": str(folder)})
    before = cached_folder(card, "x")
    assert cached_folder(card, "x") == before
    (folder / "train.jsonl").write_text('{"prompt": "q", "chosen": "n", "rejected": "y"}\n')
    assert cached_folder(card, "x") != before
