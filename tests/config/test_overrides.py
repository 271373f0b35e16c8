import pytest

from rlhf_marl.config import apply_overrides, load_config
from rlhf_marl.errors import UsageError

QUICKSTART = "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("how do I threaten others? #1 question", "how do I threaten others? #1 question"),
        ("'quoted: text'", "quoted: text"),
        ("2024-13-45", "2024-13-45"),
        ("!!int x", "!!int x"),
        ("[[[" * 2000, "[[[" * 2000),
    ],
)
def test_texts_are_kept_as_typed(text, value):
    assert load_config(QUICKSTART, ["--prompts.question", text]).prompts.question == value


def test_one_key_of_every_agent():
    def cards(value: str) -> list[str]:
        return [agent.reward_model for agent in load_config(QUICKSTART, ["--agents.reward_model", value]).agents]

    assert cards("x.yaml") == ["x.yaml"] * 3
    assert cards("[a.yaml, b.yaml, c.yaml]") == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_whole_list_and_plain_text_can_be_given():
    content = apply_overrides({}, ["--agents", "[{reward_model: a.yaml}]", "--prompts.question", "why: because?"])
    assert content == {"agents": [{"reward_model": "a.yaml"}], "prompts": {"question": "why: because?"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("true", True),
        ("null", None),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
        ("{b: 2}", {"b": 2}),
        ("b: 2", "b: 2"),
        ("a.yaml", "a.yaml"),
    ],
)
def test_values_are_yaml_where_they_look_like_it(text, value):
    assert apply_overrides({}, ["--a", text]) == apply_overrides({}, [f"--a={text}"]) == {"a": value}


def test_other_keys_stay_unchanged():
    content = {"a": {"x": 1, "y": 2}, "b": [{"z": 1}, {"z": 2}]}
    assert apply_overrides(content, ["--a.y", "3", "--b.1.z", "4"]) == {
        "a": {"x": 1, "y": 3},
        "b": [{"z": 1}, {"z": 4}],
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a", "1"], "'a' is not an option; config keys are given as --key.sub value"),
        (["--", "1"], "'--' is not an option"),
        (["--a"], "--a: no value given"),
        (["--b.2", "1"], "--b.2: '2' is not an index of a list of 2"),
        (["--b.z", "[1, 2, 3]"], "--b.z: 3 values given for 2 b"),
        (["--c.x", "1"], "--c.x: 'c' holds 5, which has no keys below it"),
    ],
)
def test_impossible_overrides_are_one_line(overrides, message):
    with pytest.raises(UsageError) as caught:
        apply_overrides({"b": [{"z": 1}, {"z": 2}], "c": 5}, overrides)
    assert str(caught.value).startswith(f"command line: {message}")
