"""A sweep's training processes are `stub.py`."""

import sys
from pathlib import Path

import pytest

from rlhf_marl.sweeps.grid import plan

STUB = Path(__file__).parent / "stub.py"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Replaces Python in the sweep's processes; returns the calls so far."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STUB}" "$@"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr("rlhf_marl.sweeps.processes.sys.executable", str(interpreter))
    monkeypatch.chdir(tmp_path)
    calls = tmp_path / "calls.txt"
    return lambda: calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def planned(tiny_content: dict, tmp_path: Path):
    """`plan` for the tiny config, into sweep/."""
    return lambda over, **changes: plan(tiny_content | changes, "tiny.yaml", over, tmp_path / "sweep")
