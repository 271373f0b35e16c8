"""The runs in a folder: state, last reward, verdicts. No torch import."""

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import NUMBERS, is_current, read_numbers
from rlhf_marl.files.jsonl import BadLine, complete_lines, parse_jsonl
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.runs.validations import is_finished

_DEEPEST = 4  # folders below the listed one
_TAIL = 1_000_000  # bytes of metrics.jsonl that are read


class Listed(NamedTuple):
    """One run.

    state: running, finished, interrupted, or empty (nothing recorded yet). reward: the team's mean scaled reward in the
    last iteration. verdicts: of the agents, if the run was evaluated in its present state.
    """

    path: str
    state: str
    iterations: int
    of: int | None
    reward: float | None
    verdicts: list[str]


def list_runs(folder: Path) -> list[Listed]:
    """Every run directory in or below the folder, the oldest first. Raises UsageError if there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"runs: {str(folder)!r} is not a folder")
    found = sorted(_run_directories(folder, _DEEPEST), key=lambda path: (path / "config.yaml").stat().st_mtime)
    return [_listed(path) for path in found]


def _run_directories(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
        yield folder
        return
    if depth == 0 or not os.access(folder, os.R_OK | os.X_OK):
        return
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
            yield from _run_directories(inner, depth - 1)


def _listed(path: Path) -> Listed:
    rows = _last_rows(path / "metrics.jsonl")
    last = [row["reward_scaled"] for row in rows if row["iteration"] == rows[-1]["iteration"]]
    done = rows[-1]["iteration"] + 1 if rows else 0
    try:
        of = load_yaml(path / "config.yaml").get("iterations")
    except (OSError, UsageError):
        of = None
    of = of if isinstance(of, int) else None
    if _locked(path):
        state = "running"
    elif of is not None and is_finished(path, done, of):
        state = "finished"
    else:
        state = "interrupted" if done else "empty"
    return Listed(str(path), state, done, of, fmean(last) if last else None, _verdicts(path))


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """Undamaged rows at the end of metrics.jsonl."""
    with file.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        size = stream.tell()
        stream.seek(max(0, size - _TAIL))
        content = stream.read()
    if size > _TAIL:
        content = content[content.find(b"\n") + 1 :]
    rows = [row for _, row in parse_jsonl(complete_lines(content), nan_as_none=True) if not isinstance(row, BadLine)]
    return [
        row for row in rows if type(row.get("iteration")) is int and isinstance(row.get("reward_scaled"), float | int)
    ]


def _locked(path: Path) -> bool:
    """Whether another process holds the run's lock."""
    if not os.access(path / ".lock", os.W_OK):
        return False
    try:
        with FileLock(path / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _verdicts(path: Path) -> list[str]:
    try:
        _, numbers = read_numbers(path / NUMBERS)
    except (OSError, UsageError):
        return []
    return [agent["verdict"] for agent in numbers["agents"]] if is_current(numbers["settings"], path) else []
