"""Every example of docs/reward-models.md, run in an empty folder."""

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_marl.cli import main
from tests.rewards.test_sequence_classifier import saved

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reward-models.md").read_text("utf-8")
FILES = dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", DOCUMENT, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The document's files, with tiny models instead of the Hub's and of MiniLM, and data."""
    for name, text in FILES.items():
        text = text.replace("some-org/some-reward-model", str(tmp_path / "llama"))
        base = f"base: {tmp_path / 'deberta'}\n" if name == "manners.yaml" else ""
        (tmp_path / name).write_text(text + base)
    saved(tmp_path / "llama", "llama")
    saved(tmp_path / "deberta", "deberta")
    pairs = [{"prompt": f"p{i}", "chosen": "thank you" + "!" * i, "rejected": "no" + "." * i} for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    answers = [{"prompt": "p", "response": "word " * i} for i in range(1, 5)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (tmp_path / "sums.jsonl").write_text('{"prompt": "2+2?", "response": "It is 4.", "answer": "4"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(folder):
    """server.py on a free port, which remote.yaml then names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "remote.yaml").write_text((folder / "remote.yaml").read_text().replace("8123", str(port)))
    process = subprocess.Popen([sys.executable, "server.py", str(port)], cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield
    process.terminate()
    process.wait()


def test_every_command_works(folder, server, monkeypatch, capsys):
    assert len(COMMANDS) >= 7
    printed = {}
    for command in COMMANDS:
        arguments = re.findall(r'"[^"]*"|\S+', command)
        monkeypatch.setattr(sys, "argv", [argument.strip('"') for argument in arguments])
        main()
        printed[" ".join(arguments[2:4])] = capsys.readouterr().out
    assert printed["score brevity.yaml"] == "raw +0.5000  scaled +0.5000\n"
    assert printed["score remote.yaml"] == "raw +4.0000  scaled +4.0000\n"
    assert json.loads(printed["score sums.yaml"])["reward_raw"] == 1.0
    assert "accuracy" in printed["agreement preference.yaml"]
    assert re.fullmatch(r"scale: \S+\noffset: \S+\n", printed["calibrate preference.yaml"])
    assert "held-out accuracy" in printed["train manners.yaml"]
    assert (folder / "manners" / "card.yaml").is_file()
