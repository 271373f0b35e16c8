"""`rlhf-marl serve`: what it says, what it refuses, and how it ends."""

import os
import re
import signal
import threading
import urllib.request

import pytest

from rlhf_marl.serving import app


def test_it_serves_until_ctrl_c(tiny_run, run, monkeypatch, capsys):
    answers = []

    def ask(server):
        answers.append(urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/models").status)
        os.kill(os.getpid(), signal.SIGINT)

    build = app.build_server

    def build_and_ask(*arguments):
        server = build(*arguments)
        begin = server.startup

        async def startup(sockets):
            server.port = sockets[0].getsockname()[1]
            await begin(sockets)
            threading.Thread(target=ask, args=(server,)).start()

        server.startup = startup
        return server

    monkeypatch.setattr("rlhf_marl.cli.serve.build_server", build_and_ask)
    monkeypatch.delenv("RLHF_MARL_API_KEY", raising=False)
    code, _, said = run("serve", str(tiny_run), "--port", "0", "--max-tokens", "50")
    assert (code, answers) == (0, [200])
    loading, serving, ended = said.splitlines()[-3:]
    assert loading == f"loading the last adapters of {tiny_run}"
    line = r"serving base, agent-0, agent-1, team at http://127\.0\.0\.1:\d+/v1 \(no key needed\); Ctrl-C ends"
    assert re.fullmatch(line, serving)
    assert ended == "ended"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "nowhere", "--port", "0"), "error: serve: 'nowhere' is not a run directory: it has no config.yaml"),
        (
            ("serve", "RUN", "--host", "0.0.0.0", "--port", "0"),
            "error: serve: api_key_env: the environment variable RLHF_MARL_API_KEY is not set; --host 0.0.0.0 can be "
            "reached from other machines, so a key is needed",
        ),
        (("serve", "RUN", "--host", "no.such.invalid"), "error: --host: 'no.such.invalid': "),
        (
            ("serve", "RUN", "--port", "0", "--max-tokens", "512"),
            "error: --max-tokens: 512 given; the model's context has 512 tokens",
        ),
    ],
)
def test_impossible_requests_are_one_error_line(tiny_run, run, monkeypatch, arguments, message):
    monkeypatch.delenv("RLHF_MARL_API_KEY", raising=False)
    code, _, said = run(*(str(tiny_run) if word == "RUN" else word for word in arguments))
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error")]
    assert line.startswith(message)


def test_a_key_that_is_none_is_refused_on_loopback_too(tiny_run, run, monkeypatch):
    monkeypatch.setenv("MY_KEY", "two\nlines")
    code, _, said = run("serve", str(tiny_run), "--port", "0", "--api-key-env", "MY_KEY")
    assert code == 2
    assert "the environment variable MY_KEY does not hold a valid key" in said
    assert "lines" not in said.replace("line ends", "")
