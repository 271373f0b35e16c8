import asyncio
import inspect
from types import SimpleNamespace

import pytest
from trl import GRPOTrainer

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import build_reward_model, check_card, score_all
from rlhf_marl.rewards.python_callable import CallableCard
from tests.conftest import tiny_sampler
from tests.rewards.conftest import score, write


@pytest.mark.parametrize("function", ["no_such_module:f", "math:no_such_function", "math:pi"])
def test_a_function_that_is_none_is_refused(function):
    card = CallableCard(name="x", kind="callable", function=function)
    with pytest.raises(UsageError, match=r"card x: function: "):
        build_reward_model(card)


def trl_reward(completions, prompts=None, bonus=0.0, **kwargs):
    return [len(prompt) + len(text) + bonus for prompt, text in zip(prompts, completions, strict=True)]


def test_trl_reward_functions_fit():
    function = "tests.rewards.test_python_callable:trl_reward"
    content = CallableCard(name="trl", kind="callable", function=function, convention="trl", arguments={"bonus": 0.5})
    assert build_reward_model(content).score(["ab"], ["cde"]) == [5.5]


def recorded(prompts, completions, completion_ids, **kwargs):
    SEEN.append((prompts, completions, completion_ids, kwargs))
    kwargs["log_metric"]("length", 1.0)
    return [float(len(ids)) for ids in completion_ids]


def solved(completions, answer, level=None, **kwargs):
    SEEN.append((answer, level, kwargs))
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def strict_about_answers(prompts, completions, answer):
    return [float(len(right)) for right in answer]


async def awaited(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


async def also_awaited(prompts, responses):
    return [float(len(text)) for text in responses]


SEEN = []
MODULE = "tests.rewards.test_python_callable"
DIALOGUE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "q"}]


def trl_card(name, **options):
    return CallableCard(name="trl", kind="callable", function=f"{MODULE}:{name}", convention="trl", **options)


def test_trl_functions_get_what_trls_trainers_pass():
    """The arguments of GRPOTrainer, and messages as with its conversational data."""
    SEEN.clear()
    base = tiny_sampler()
    ids = [base.tokenizer("cd")["input_ids"]]
    assert trl_card("recorded", arguments={"bonus": 1}).build(base, None).score(["ab"], ["cd"]) == [2.0]
    assert trl_card("recorded", conversational=True).build(base, None).score(["ab"], ["cd"]) == [2.0]
    answer = [[{"role": "assistant", "content": "cd"}]]
    assert [seen[:3] for seen in SEEN] == [
        (["ab"], ["cd"], ids),
        ([[{"role": "user", "content": "ab"}]], answer, ids),
    ]
    assert [set(seen[3]) for seen in SEEN] == [
        {"bonus", "trainer_state", "log_extra", "log_metric"},
        {"trainer_state", "log_extra", "log_metric"},
    ]
    with pytest.raises(UsageError, match=r"card trl: function: .*recorded needs completion_ids, and outside a run"):
        build_reward_model(trl_card("recorded"))


ROWS = [{"answer": "4", "level": 1, "prompt": "x", "trainer_state": "x"}, {"answer": "5", "topic": "sums"}]


def test_trl_functions_get_the_columns_of_the_data_as_trls_trainer_passes_them():
    SEEN.clear()
    score = build_reward_model(trl_card("solved")).score
    assert score(["2+2?", "2+2?"], ["4", "4"], ROWS) == [1.0, 0.0]
    (answer, level, others) = SEEN.pop()
    assert (answer, level, others["topic"]) == (["4", "5"], [1, None], [None, "sums"])
    assert others.keys() == {"topic", "prompts", "trainer_state", "log_extra", "log_metric"}
    assert others["trainer_state"] is None

    rows = [row | {"prompt": "2+2?", "level": 1} for row in ({"answer": "4"}, {"answer": "5"})]
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        args=SimpleNamespace(report_to=[]),
        reward_funcs=[solved],
        reward_processing_classes=[None],
        reward_func_names=["solved"],
        state=SimpleNamespace(global_step=0),
        environments=None,
        _log_completion_extra=None,
        _log_metric=None,
    )
    theirs = inspect.unwrap(GRPOTrainer._calculate_rewards)(trainer, rows, ["2+2?"] * 2, ["4", "4"], [[1], [1]])
    assert theirs.tolist() == [[1.0], [0.0]]
    (of_trl,) = SEEN
    SEEN.clear()
    score(["2+2?", "2+2?"], ["4", "4"], rows)
    (ours,) = SEEN
    assert ours[:2] == of_trl[:2]
    assert of_trl[2].keys() == ours[2].keys() | {"completion_ids"}  # outside a run there is no tokenizer


def test_functions_without_keywords_get_the_columns_that_they_name():
    card = trl_card("strict_about_answers")
    assert score_all(card, build_reward_model(card), ["q"], ["r"], rows=[{"answer": "four", "level": 2}])[0] == [4.0]
    both = check_card({"name": "x", "kind": "ensemble", "combine": "sum", "members": [{"card": card}] * 2}, "x.yaml")
    assert score_all(both, build_reward_model(both), ["q"], ["r"], rows=[{"answer": "four"}])[0] == [8.0]


def test_columns_that_a_function_needs_and_the_data_lacks_are_refused():
    card = trl_card("solved")
    message = r"c: prompts: reward model trl: .*:solved needs a column 'answer' of the data; its columns are level"
    with pytest.raises(UsageError, match=message):
        card.check_columns(["level", "prompt"], "c: prompts")
    with pytest.raises(UsageError, match="'answer' of the data; it has no further columns"):
        check_card({"name": "x", "kind": "ensemble", "members": [{"card": card}]}, "x").check_columns([], "c")
    card.check_columns(["answer"], "c")
    given = trl_card("solved", arguments={"answer": "4"})
    given.check_columns([], "c")
    with pytest.raises(UsageError, match=r"card trl: arguments: answer is also a column of the data \(c\)"):
        given.check_columns(["answer"], "c")
    CallableCard(name="x", kind="callable", function=f"{MODULE}:also_awaited").check_columns([], "c")


def test_functions_may_be_async():
    assert build_reward_model(trl_card("awaited")).score(["p"], ["four"]) == [4.0]
    ours = CallableCard(name="x", kind="callable", function=f"{MODULE}:also_awaited")
    assert build_reward_model(ours).score(["p"], ["four"]) == [4.0]


def test_trl_functions_may_read_the_whole_dialogue():
    SEEN.clear()
    card = trl_card("recorded", conversational=True, context="dialogue")
    assert card.reads_dialogue
    card.build(tiny_sampler(), None).score([DIALOGUE], ["cd"])
    assert SEEN[0][0] == [DIALOGUE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conversational": True}, "conversational: only with convention: trl"),
        ({"convention": "trl", "context": "dialogue"}, "context: dialogue needs conversational: true"),
    ],
)
def test_keys_that_need_another_are_refused(options, message):
    content = {"name": "x", "kind": "callable", "function": "math:prod"}
    with pytest.raises(UsageError, match=f"x.yaml: {message}"):
        check_card(content | options, "x.yaml")


def test_a_function_in_a_file(cards):
    (cards / "short.py").write_text("def f(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    assert score(write(cards / "a.yaml", kind="callable", function="short.py:f")) == [4.0]
    write(cards / "both.yaml", kind="ensemble", combine="sum", members=[{"card": "a.yaml"}, {"card": "a.yaml"}])
    assert score(str(cards / "both.yaml")) == [8.0]


def test_the_working_folder_comes_after(cards):
    assert score(write(cards / "a.yaml", kind="callable", function="short.py:f")) == [-1.0]


def test_a_function_file_that_fails_or_is_missing_is_one_line(cards):
    (cards / "bad.py").write_text("def f(:\n")
    for function in ("bad.py:f", "gone.py:f", "bad.py.txt:f"):
        with pytest.raises(UsageError, match=r"function: ") as caught:
            score(write(cards / "a.yaml", kind="callable", function=function))
        assert "\n" not in str(caught.value)


def shifted(prompts, responses, by):
    return [len(text) + by for text in responses]


def test_arguments_are_handed_on():
    function = "tests.rewards.test_python_callable:shifted"
    card = CallableCard(name="x", kind="callable", function=function, arguments={"by": 2})
    assert build_reward_model(card).score(["p", "p"], ["a", "bcd"]) == [3, 5]


def test_in_words_has_no_path_of_this_machine():
    card = CallableCard(name="x", kind="callable", function="/home/me/secret/short.py:f")
    assert card.in_words() == "Python function short.py:f"
    assert card.scores_with() == "/home/me/secret/short.py:f"
