"""A run killed at any write, resumed, ends as if nothing had happened: bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import yaml

import rlhf_marl
from rlhf_marl import run_directory
from rlhf_marl.run_directory import RunDirectory, read_jsonl

FINAL = ("dialogues.jsonl", "critics.safetensors", "adapters/agent_0/adapter_model.safetensors")
TIMES = ("seconds", "stage_seconds", "tokens_per_second")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the toolkit may catch it."""


class Killer:
    """Lets `allowed` writes pass and kills at the next, before it or, for lines of a file, in its middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed: float = float("inf")
        self.writes = 0
        append = RunDirectory.append

        def torn_append(run: RunDirectory, file: Path, rows) -> None:
            rows = list(rows)
            if self.counts():
                half = "".join(json.dumps(row) + "\n" for row in rows)
                with file.open("a") as stream:
                    stream.write(half[: len(half) // 2])
                raise Killed
            append(run, file, rows)

        monkeypatch.setattr(RunDirectory, "append", torn_append)
        for place, name in ((os, "replace"), (os, "fsync"), (run_directory, "save_file"), (shutil, "rmtree")):
            monkeypatch.setattr(place, name, self.before(getattr(place, name)))

    def counts(self) -> bool:
        self.writes += 1
        return self.writes > self.allowed

    def before(self, write):
        def deadly(*arguments, **options):
            if self.counts():
                raise Killed
            return write(*arguments, **options)

        return deadly


def final_state(path: Path) -> list:
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(path / "metrics.jsonl")]
    return [rows, *((path / name).read_bytes() for name in FINAL)]


def test_killed_at_every_write(tiny_content, tmp_path, monkeypatch):
    content = tiny_content | {"turns": 1}
    expected = final_state(rlhf_marl.train(content, run_dir=tmp_path / "whole").path)
    killer = Killer(monkeypatch)
    for writes in count():
        path = tmp_path / str(writes)
        killer.writes, killer.allowed = 0, writes
        try:
            rlhf_marl.train(content, run_dir=path)
        except Killed:
            killer.allowed = float("inf")
            started = (path / "config.yaml").is_file()
            path = path if started else path.with_name(f"{writes}-again")
            rlhf_marl.train(content, run_dir=path, resume=started)
            assert final_state(path) == expected, f"killed at write {writes}"
        else:
            break
    assert writes > 20


def test_killed_by_the_system_at_random_moments(tiny_content, tmp_path):
    """SIGKILL from outside, again and again, until a run gets through."""
    content = tiny_content | {"iterations": 40}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "rlhf_marl", "train", "c.yaml", "--run-dir", "run"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    metrics = tmp_path / "run" / "metrics.jsonl"
    generator = random.Random(0)
    for attempt in range(2):
        before = metrics.stat().st_size if metrics.exists() else 0
        resume = ["--resume"] if attempt else []
        process = subprocess.Popen([*command, *resume], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    rlhf_marl.train(content, run_dir=tmp_path / "run", resume=True)
    whole = rlhf_marl.train(content, run_dir=tmp_path / "whole")
    assert final_state(tmp_path / "run") == final_state(whole.path)
