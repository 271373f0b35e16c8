"""Hostile text in a terminal: shown escaped, on one line."""

import pytest

from rlhf_marl.errors import printable

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
    """Whatever a mistake repeats, here a file's name, one printable line comes of it."""
    code, _, complaint = run("train", f"{text}.yaml")
    assert code == 2
    (line,) = complaint.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
