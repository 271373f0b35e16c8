"""`rlhf-marl chat` over a pipe and on a terminal."""

import io
import json
import os
import pty
import select
import subprocess
import sys

import pytest

from rlhf_marl.serving.answers import Answerer


@pytest.fixture
def talk(run, tiny_run, monkeypatch):
    """Chat with these lines on stdin: (exit code, stdout, stderr)."""

    def call(*lines, arguments=()):
        stdin = io.TextIOWrapper(io.BytesIO(b"".join(one if isinstance(one, bytes) else one.encode() for one in lines)))
        monkeypatch.setattr(sys, "stdin", stdin)
        return run("chat", str(tiny_run), *arguments)

    return call


def test_over_a_pipe(talk, tmp_path):
    code, printed, said = talk("hi?\n", "/agent 1\n", "\n", "/base\n", "//why?\n", "/scores\n", "/save out.json\n")
    assert code == 0
    saved = json.loads((tmp_path / "out.json").read_text("utf-8"))["replies"]
    assert [reply["question"] for reply in saved] == ["hi?", "/why?"]
    assert [[(one["who"], one["adapted"]) for one in reply["said"]] for reply in saved] == [
        [("team", True)],
        [("agent-1", True), ("agent-1", False)],
    ]
    lines = printed.splitlines()
    assert [line for line in lines if line in ("team", "agent 1", "agent 1, untrained")] == [
        "team",
        "agent 1",
        "agent 1, untrained",
    ]
    scores = saved[0]["said"][0]["scores"]
    assert f"  [vowels {scores['vowels']:+.2f}  length {scores['length']:+.2f}]" in lines
    table = lines[-7:]
    assert table[0].split() == ["vowels", "length"]
    assert table[1].split()[:2] == ["1", "team"]
    assert table[-1].startswith("mean  agent 1, untrained")
    assert "you>" not in printed + said
    assert "\x1b" not in printed + said


def test_the_seed_and_the_limit_are_heeded(talk):
    _, first, _ = talk("hi\n", "/agent 0\n", "hi\n", arguments=("--seed", "7", "--no-scores"))
    assert talk("hi\n", "/agent 0\n", "hi\n", arguments=("--seed", "7", "--no-scores"))[1] == first
    assert talk("hi\n", "/agent 0\n", "hi\n", arguments=("--seed", "8", "--no-scores"))[1] != first
    assert "[vowels" not in first
    longer = talk("/tokens 90\n", "/agent 0\n", "hi\n")[1]
    assert len(longer) > len(first)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/warp\x1b[2J 9", r"error: '/warp\x1b[2J' is no command; choose /team, /agent N, /base"),
        ("/agent 2", "error: /agent: '2' given; choose 0 to 1"),
        ("/agent", "error: /agent N is how it is written"),
        ("/team now", "error: /team is how it is written, not 'now'"),
        ("/tokens -3", "error: /tokens: '-3' given; use a whole number above 0"),
        ("/tokens 512", "error: /tokens: 512 given; the dialogue needs room too in 512 tokens"),
        ("/scores", "error: /scores: nothing was scored yet"),
        ("/save nowhere/at/all.json", "error: /save: 'nowhere/at/all.json' cannot be written: No such file"),
        ("/save .", "error: /save: '.' exists already; choose another name"),
    ],
)
def test_a_wrong_line_is_one_error_line_and_the_chat_goes_on(talk, line, message):
    code, printed, said = talk(f"{line}\n", "hi\n")
    assert code == 2
    (found,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert found.startswith(message)
    assert printed.startswith("team\n")


def test_bytes_that_are_no_text(talk):
    code, printed, _ = talk(b"\xff\xfe\x00 hi\n", "/quit\n", "never asked\n")
    assert code == 0
    assert printed.count("team\n") == 1


def test_a_limit_beyond_the_context(talk):
    code, _, said = talk("hi\n", arguments=("--max-tokens", "512"))
    assert code == 2
    assert "error: --max-tokens: 512 given; the dialogue needs room too in 512 tokens" in said


HOSTILE = "\x1b[2Jcleared\r\u202etxet\x07\nteam\nerror: gone\nyou> \x9b31m"


def test_hostile_answers_are_inert_and_indented(talk, monkeypatch):
    said = Answerer.answer

    def answer(self, *arguments, **options):
        found = said(self, *arguments, **options)
        return type(found)(HOSTILE, found.prompt, found.tokens, found.finished, None)

    monkeypatch.setattr(Answerer, "answer", answer)
    _, printed, _ = talk("hi\n", arguments=("--no-scores",))
    name, *lines = printed.splitlines()
    assert name == "team"
    assert lines[:4] == [r"  \x1b[2Jcleared\r\u202etxet\x07", "  team", "  error: gone", r"  you> \x9b31m"]
    assert all(line.startswith("  ") and line.isprintable() for line in lines)


@pytest.mark.slow
def test_on_a_terminal(tiny_run):
    """A prompt, colours, wrapped and indented answers; Ctrl-D ends."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "rlhf_marl", "chat", str(tiny_run), "--max-tokens", "90"]
    environment = os.environ | {"COLUMNS": "40", "TERM": "xterm"}
    unread = b""

    def read_until(end: bytes) -> str:
        nonlocal unread
        while end not in unread:
            ready, _, _ = select.select([controller], [], [], 60)
            assert ready, unread
            unread += os.read(controller, 10_000)
        before, _, unread = unread.partition(end)
        return before.decode(errors="replace")

    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        try:
            read_until(b"you> ")
            os.write(controller, b"hi\n")
            text = read_until(b"you> ")
            os.write(controller, b"\x04")
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(controller)
    assert "\x1b[36m\x1b[1mteam\x1b[0m\r\n" in text
    lines = text.partition("team\x1b[0m\r\n")[2].partition("\x1b")[0].splitlines()
    assert len(lines) > 2
    assert [line for line in lines if not line.startswith("  ") or len(line) > 40] == []
