"""SIGKILL at writes or random moments, and what is left when the work is done all the same. Run by test_kill.py.

The process has imported everything and works with one thread, so that a fork of it is a fresh process in no time:

    python -m tests.killing FOLDER train=KILLS reward=KILLS study=KILLS writes=STEP

writes: a training is killed at every STEP-th of its writes, see `Assassin`; the others at so many random moments.

FOLDER/train/config.json and FOLDER/writes/config.json: plain data of a config; FOLDER/reward/card.json: of a `trained`
card; FOLDER/study/study.json: overrides of configs/study.yaml. Prints {kind: {"kills": ...}} in a line for each, and
fails if a completed work differs from an uninterrupted one.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import torch

import rlhf_marl.api
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.rewards import TrainedCard
from rlhf_marl.rewards.training import train_reward_model
from rlhf_marl.runs.directory import RunDirectory

TIMES = ("seconds", "stage_seconds", "tokens_per_second")
NOT_THE_SAME = {
    ".lock",
    "environment.json",
    "report.html",
    "metrics.jsonl",
    "train.log",
}  # report.html has times, like metrics
Work = Callable[[Path], None]
State = Callable[[Path], Any]


def state_of_run(path: Path) -> dict[str, Any]:
    """Every file of a run directory, metrics without times."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(path / "metrics.jsonl")]
    return {"metrics.jsonl": rows} | files(path)


def state_of_study(path: Path) -> dict[str, Any]:
    """Arrays and files, apart from times."""
    from safetensors.numpy import load_file

    summary = json.loads((path / "results.json").read_text())
    summary.pop("seconds")
    for experiments in summary["experiments"].values():
        for arms in experiments.values():
            for arm in arms.values():
                arm.pop("seconds")
    arrays = {
        f"{file.name} {name}": array.tobytes()
        for file in path.glob("settings/*.safetensors")
        for name, array in load_file(file).items()
    }
    return {"results.json": summary} | arrays | files(path / "figures")


def files(path: Path) -> dict[str, Any]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in NOT_THE_SAME
    }


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def in_a_fork(work: Work, path: Path, seconds: float) -> bool:
    """Do the work in a subprocess and kill it after so many seconds. True if it finished before."""
    child = os.fork()
    if child == 0:
        try:
            with open(os.devnull, "w") as nothing, redirect_stderr(nothing), redirect_stdout(nothing):
                work(path)
        except BaseException as error:
            print(f"{path}: {type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            assert ended[1] in (0, signal.SIGKILL), f"{path} failed"
            return ended[1] == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"{path} failed"
    return status == 0


def kill(work: Work, state: State, folder: Path, kills: int) -> dict[str, Any]:
    """Kill the work at random moments, uniform over its duration, so many times in all; then let it finish."""
    work(folder / "warm")  # here, so that no fork need import anything
    start = time.monotonic()
    in_a_fork(work, folder / "whole", 1e9)
    takes = time.monotonic() - start
    expected = state(folder / "whole")
    generator = random.Random(0)
    killed = completed = 0
    while killed < kills:
        path = folder / "killed" / str(completed)
        path.parent.mkdir(exist_ok=True)
        while not in_a_fork(work, path, generator.uniform(0, takes) if killed < kills else 1e9):
            killed += 1
        found = state(path)
        assert not (wrong := differing(found, expected)), f"after {killed} kills {path} differs in {wrong}"
        shutil.rmtree(path)
        completed += 1
    return {
        "kills": killed,
        "completed": completed,
        "takes": round(takes, 3),
    }


class Assassin:
    """Lets `allowed` writes under a folder pass and kills this process, the hard way, at the next.

    A write is to open a file for writing, rename, remove, make or remove a folder, fsync, and to append lines to a log:
    the process dies before it, or in the middle of the lines.
    """

    EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

    def __init__(self, folder: Path, allowed: int) -> None:
        self._folder, self._left = str(folder), allowed
        sys.addaudithook(self._heard)
        os.fsync = lambda descriptor: self._write()  # quicker than the real one
        append = RunDirectory.append

        def torn(run: RunDirectory, file: Path, rows: Any) -> None:
            rows = list(rows)
            if self._left == 0:
                self._left = 9  # for the opening
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                with file.open("a") as stream:
                    stream.write(lines[: len(lines) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            self._write()
            append(run, file, rows)

        RunDirectory.append = torn

    def _heard(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else not set(mode).isdisjoint("wax+")
            if writes and str(path).startswith(self._folder):
                self._write()
        elif event in self.EVENTS and (arguments[-1] != -1 or str(arguments[0]).startswith(self._folder)):
            self._write()

    def _write(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at_writes(work: Work, state: State, folder: Path, step: int) -> dict[str, Any]:
    """Kill the work at each `step`-th of its writes, and let it be done each time."""
    work(folder / "warm")  # here, so that no fork need import anything
    in_a_fork(work, folder / "whole", 1e9)
    expected = state(folder / "whole")

    def doomed(path: Path) -> None:
        Assassin(path, allowed)
        work(path)

    for kills, allowed in enumerate(count(step // 2, step)):
        path = folder / "killed" / str(allowed)
        path.parent.mkdir(exist_ok=True)
        if in_a_fork(doomed, path, 1e9):
            return {"kills": kills, "writes": allowed}
        assert in_a_fork(work, path, 1e9)
        assert not (wrong := differing(state(path), expected)), f"after a kill at write {allowed} differ {wrong}"
        shutil.rmtree(path)
    raise AssertionError


def train_work(folder: Path) -> Work:
    content = json.loads((folder / "config.json").read_text())
    rlhf_marl.api.refresh_report = lambda path: None  # a fifth of a second each, made anew from what is there

    def work(path: Path) -> None:
        rlhf_marl.train(content, run_dir=path, resume=(path / "config.yaml").is_file())

    return work


def reward_work(folder: Path) -> Work:
    card = TrainedCard(**json.loads((folder / "card.json").read_text()))

    def work(path: Path) -> None:
        if not path.exists():
            train_reward_model(card, path, "card")

    return work


def study_work(folder: Path) -> Work:
    from rlhf_marl.gridworld.study.config import load_study
    from rlhf_marl.gridworld.study.run import run_study

    config = load_study("configs/study.yaml", json.loads((folder / "study.json").read_text()))
    return lambda path: print(run_study(config, path, lambda line: None))


def main() -> None:
    torch.set_num_threads(1)
    kinds: dict[str, tuple[Callable[[Path], Work], State]] = {
        "train": (train_work, state_of_run),
        "writes": (train_work, state_of_run),
        "reward": (reward_work, files),
        "study": (study_work, state_of_study),
    }
    for argument in sys.argv[2:]:
        kind, kills = argument.split("=")
        make, state = kinds[kind]
        folder = Path(sys.argv[1]) / kind
        do = kill_at_writes if kind == "writes" else kill
        print(json.dumps({kind: do(make(folder), state, folder, int(kills))}))


if __name__ == "__main__":
    main()
