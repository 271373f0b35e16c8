"""What is shown during a wait."""

import contextlib
import io
import sys
import time

from rlhf_marl.files.waiting import waiting


def test_one_inert_line_where_there_is_no_terminal(capsys):
    with waiting("converting \x1b[31m[bold]"):
        pass
    assert capsys.readouterr().err == "converting \\x1b[31m[bold]\n"


def test_the_terminal_moves_while_stderr_is_redirected(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("training"), contextlib.redirect_stderr(io.StringIO()):
        begun = len(terminal.getvalue())
        deadline = time.monotonic() + 5
        while len(terminal.getvalue()) == begun and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(terminal.getvalue()) > begun
