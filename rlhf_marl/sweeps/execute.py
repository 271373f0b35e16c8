"""Trains a sweep's unfinished runs in processes of their own, so that one failure leaves the others alone."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from rlhf_marl.config import dump_config
from rlhf_marl.sweeps.grid import Planned, finished
from rlhf_marl.sweeps.processes import Process, Start

_POLL = 0.1  # seconds


def execute(
    runs: Sequence[Planned], *, start: Start, jobs: int, evaluate: bool, report: Callable[[Planned, str], None]
) -> dict[str, str]:
    """Train every run that is not finished, and evaluate it if asked; an interrupted one is resumed.

    The output of a run's processes goes to <run directory>.log, its config to <run directory>.yaml. After Ctrl-C every
    running training saves a checkpoint and stops; the same sweep then continues.

    Args:
        start: starts a run's commands.
        jobs: runs at a time.
        report: receives (run, what happened): "training", "evaluating", "finished", "failed: <reason>".

    Returns:
        The reason of each failure by the run's name.
    """
    waiting = deque(runs)
    working: list[_Worker] = []
    failures: dict[str, str] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                working.append(_Worker(waiting.popleft(), start, evaluate, report))
            for worker in list(working):
                if (outcome := worker.advance()) is not None:
                    working.remove(worker)
                    report(worker.run, outcome)
                    if outcome != "finished":
                        failures[worker.run.name] = outcome.removeprefix("failed: ")
            if working:
                time.sleep(_POLL)
    except BaseException:
        for worker in working:
            worker.stop()
        for worker in working:
            worker.wait()
        raise
    return failures


@final
class _Worker:
    """One run's commands, one after another."""

    def __init__(self, run: Planned, start: Start, evaluate: bool, report: Callable[[Planned, str], None]) -> None:
        self.run, self._start, self._report = run, start, report
        run.path.parent.mkdir(parents=True, exist_ok=True)
        self._log = run.path.with_name(f"{run.path.name}.log")
        self._left = deque([("evaluating", ["evaluate", str(run.path)])] if evaluate else [])
        if not finished(run):
            config = run.path.with_name(f"{run.path.name}.yaml")
            dump_config(run.config, config)
            resume = ["--resume"] if (run.path / "config.yaml").is_file() else []
            self._left.appendleft(("training", ["train", str(config), "--run-dir", str(run.path), *resume]))
        self._process: Process | None = None

    def advance(self) -> str | None:
        """Start the next command if none is running; returns the outcome when there is none left or one failed."""
        if self._process is not None:
            if (code := self._process.poll()) is None:
                return None
            self._process = None
            if code != 0:
                return f"failed: {_reason(self._log, code)}"
        if not self._left:
            return "finished"
        what, arguments = self._left.popleft()
        self._report(self.run, what)
        self._process = self._start(arguments, self._log)
        return None

    def stop(self) -> None:
        """Let the training save a checkpoint and end."""
        if self._process is not None:
            self._process.stop()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


def _reason(log: Path, code: int) -> str:
    """The last error line that a process wrote, or its last line."""
    lines = log.read_bytes()[-20_000:].decode("utf-8", errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"exit code {code}: {lines[-1] if lines else 'no output'}"
