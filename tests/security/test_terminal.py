"""Hostile text in a terminal: shown escaped, on one line."""

import logging

import pytest

import rlhf_marl  # noqa: F401  (sets the filter of warnings)
from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.templates import check_chat_template
from rlhf_marl.reporting.terminal import Display
from rlhf_marl.sanitise import printable
from tests.conftest import tiny_tokenizer
from tests.reporting.test_terminal import HEALTHY

HOSTILE = {
    "ansi": "\x1b[2J\x1b[31mall is well",
    "bidi": "\u202egnp.exe",
    "newline": "one\nerror: two",
    "return": "bad\rgood",
    "bell": "\x07",
    "zero width": "a\u200bb",
    "c1": "\x9b31m",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_printable_escapes_everything_that_acts(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


def test_printable_leaves_letters_of_all_scripts():
    assert printable("Größe 東京 λ₂ [x]") == "Größe 東京 λ₂ [x]"


@pytest.mark.parametrize("text", [HOSTILE[name] for name in ("ansi", "bidi", "return", "zero width")])
def test_error_lines_are_inert(run, text):
    """An error that repeats user input, here a file name, is one printable line."""
    code, _, complaint = run("train", f"{text}.yaml")
    assert code == 2
    (line,) = complaint.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()


HOSTILE_NAME = "\x1b[2J\u202e\nerror: gone"


def test_names_in_a_damaged_run_are_inert_in_the_summary(tiny_config, tmp_path, capsys):
    display = Display(tiny_config, tmp_path)
    row = HEALTHY | {"reward_model": HOSTILE_NAME}
    display.iteration(1, [row])
    display.summary([row], [], 1)
    shown = capsys.readouterr().err
    assert r"\x1b[2J" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\nerror: gone" not in shown


def test_warnings_are_inert(capsys):
    """As Python shows them by default, without logging set up."""
    record = logging.getLogger("rlhf_marl").makeRecord("rlhf_marl", 30, "f", 1, "%s is odd", (HOSTILE_NAME,), None)
    assert logging.getLogger("rlhf_marl").filter(record)
    assert record.getMessage() == r"\x1b[2J\u202e\nerror: gone is odd"


def test_a_hostile_chat_template_adds_no_line(tiny_model_folder):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no\\nerror: all is well\x1b[2J') }}"
    with pytest.raises(UsageError, match=r"the chat template refuses a dialogue: no$"):
        check_chat_template(tokenizer, "c.yaml: model.name")


def test_a_hostile_key_adds_no_line(tiny_content):
    with pytest.raises(UsageError) as caught:
        check_config(tiny_content | {HOSTILE_NAME: 1}, "c.yaml")
    assert str(caught.value).isprintable()
