"""Instruction files: a line per mistake, sandboxed templates, examples as earlier turns."""

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.instructions import Example, Instructions, Task, load_instructions, render


class Grading(Instructions):
    grade: Task


def written(tmp_path, text):
    path = tmp_path / "i.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_chats(tmp_path):
    path = written(
        tmp_path,
        "grade:\n"
        "  system: You grade.\n"
        "  examples: [{user: ' good? ', assistant: '9 '}]\n"
        "  user: |\n"
        "    {% for r in responses %}\n"
        "      {{ loop.index }}. {{ r }}\n"
        "    {% endfor %}\n",
    )
    task = load_instructions(path, Grading).grade
    assert task.messages("x", responses=["a", "b"]) == [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": "good?"},
        {"role": "assistant", "content": "9"},
        {"role": "user", "content": "1. a\n  2. b"},  # tags leave no lines of their own
    ]


def test_examples_come_in_order_before_the_request():
    task = Task(system="S", examples=[Example(user="1", assistant="2"), Example(user="3", assistant="4")], user="5")
    assert [message["content"] for message in task.messages("x")] == ["S", "1", "2", "3", "4", "5"]
    assert [message["role"] for message in task.messages("x")][1:] == ["user", "assistant"] * 2 + ["user"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("grade: {system: s}\n", "grade.user"),
        ("grade: {system: s, user: u, more: 1}\n", "grade.more"),
        ("grade: {system: 3, user: u}\n", "grade.system"),
        ("grade: {system: s, user: u, examples: [{user: a}]}\n", "grade.examples.0.assistant"),
        ("{}\n", "grade"),
        ("grade: {system: s, user: u}\nother: 1\n", "other"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_key(tmp_path, text, key):
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_instructions(path, Grading)
    assert str(caught.value).startswith(f"{path}: {key}: ")
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_reported_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_instructions(written(tmp_path, "grade: {system: 3, user: 4}\n"), Grading)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ nope }}", "'nope' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ x.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
        ("{{ x.__class__ }}", "access to attribute '__class__'"),
        ("{% for %}", "Expected"),
        ("{% include 'file' %}", "no loader for this environment"),
    ],
)
def test_mistakes_and_attacks_in_a_template_are_one_line(template, message):
    with pytest.raises(UsageError, match=rf"^f: t.user: template error: .*{message}") as caught:
        render(template, "f: t.user", x=[1])
    assert "\n" not in str(caught.value)


def test_values_are_not_templates():
    assert render("{{ a }}|{{ b }}", "x", a="{{ b }}", b="{% if %}") == "{{ b }}|{% if %}"
