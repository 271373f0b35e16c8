import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import build_reward_model
from rlhf_marl.rewards.python_callable import CallableCard
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
