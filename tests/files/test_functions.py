"""Users' functions from modules and files, and every way that importing them fails."""

import sys

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.functions import load_function


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder; sys.path is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return tmp_path


def test_from_a_module():
    assert load_function("math:hypot", "c")(3.0, 4.0) == 5.0
    assert load_function("os.path:basename", "c")("a/b") == "b"


def test_from_a_module_of_the_working_folder(folder, monkeypatch):
    (folder / "only_here_17.py").write_text("def f():\n    return 'found'\n")
    assert load_function("only_here_17:f", "c")() == "found"
    monkeypatch.delitem(sys.modules, "only_here_17")
    assert sys.path[-1] == str(folder)  # last: it hides no installed module
    load_function("math:sqrt", "c")
    assert sys.path.count(str(folder)) == 1


def test_a_file_is_imported_again_each_time(folder):
    path = folder / "mine.py"
    path.write_text("def f():\n    return 1\n")
    assert load_function(f"{path}:f", "c")() == load_function("mine.py:f", "c")() == 1
    assert "mine" not in sys.modules
    path.write_text("def f():\n    return 'changed'\n")
    assert load_function("mine.py:f", "c")() == "changed"


def test_any_callable_is_accepted(folder):
    (folder / "mine.py").write_text("class F:\n    def __call__(self):\n        return 2\n\nf = F()\n")
    assert load_function("mine.py:f", "c")() == 2


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("no_module_17:f", "ModuleNotFoundError: No module named 'no_module_17'"),
        ("math:nothing", "AttributeError: module 'math' has no attribute 'nothing'"),
        ("no.py:f", "FileNotFoundError"),
        ("syntax.py:f", "SyntaxError"),
        ("raises.py:f", "ZeroDivisionError: division by zero"),
        ("lines.py:f", "ValueError: one"),
    ],
)
def test_what_cannot_be_imported_is_one_line(folder, reference, reason):
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "lines.py").write_text("raise ValueError('one\\ntwo')\n")
    with pytest.raises(UsageError) as caught:
        load_function(reference, "c: key")
    assert str(caught.value).startswith(f"c: key: cannot import {reference!r}: {reason}")
    assert "\n" not in str(caught.value)


def test_a_non_callable_is_refused():
    with pytest.raises(UsageError, match=r"^c: key: 'math:pi' is not a function$"):
        load_function("math:pi", "c: key")


def test_a_file_may_define_dataclasses(folder):
    """They look their module up by name."""
    (folder / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Point:\n"
        "    x: int = 3\n\ndef f():\n    return Point().x\n"
    )
    assert load_function("mine.py:f", "c")() == 3
