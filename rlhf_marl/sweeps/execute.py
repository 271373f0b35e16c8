"""Trains a sweep's unfinished runs in processes of their own, so that one failure leaves the others alone."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from rlhf_marl.config import dump_config
from rlhf_marl.sweeps.grid import Planned, finished

_POLL = 0.1  # seconds


def execute(
    runs: Sequence[Planned], *, jobs: int, evaluate: bool, report: Callable[[Planned, str], None]
) -> dict[str, str]:
    """Train every run that is not finished, and evaluate it if asked; an interrupted one is resumed.

    The output of a run's processes goes to <run directory>.log, its config to <run directory>.yaml. After Ctrl-C every
    running training saves a checkpoint and stops; the same sweep then continues.

    Args:
        jobs: runs at a time; unless OMP_NUM_THREADS is set, they share the cores.
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
                working.append(_Worker(waiting.popleft(), jobs, evaluate, report))
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

    def __init__(self, run: Planned, jobs: int, evaluate: bool, report: Callable[[Planned, str], None]) -> None:
        self.run, self._report = run, report
        run.path.parent.mkdir(parents=True, exist_ok=True)
        self._log = run.path.with_name(f"{run.path.name}.log")
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        self._environment = threads | dict(os.environ)
        self._left = deque([("evaluating", ["evaluate", str(run.path)])] if evaluate else [])
        if not finished(run):
            config = run.path.with_name(f"{run.path.name}.yaml")
            dump_config(run.config, config)
            resume = ["--resume"] if (run.path / "config.yaml").is_file() else []
            self._left.appendleft(("training", ["train", str(config), "--run-dir", str(run.path), *resume]))
        self._process: subprocess.Popen | None = None

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
        with self._log.open("ab") as log:
            # In a session of its own, so that a terminal's Ctrl-C reaches it once: through `stop`.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_marl", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        return None

    def stop(self) -> None:
        """Let the training save a checkpoint and end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()


def _reason(log: Path, code: int) -> str:
    """The last error line that a process wrote, or its last line."""
    lines = log.read_bytes()[-20_000:].decode("utf-8", errors="replace").splitlines()
    lines = [line for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"exit code {code}: {lines[-1] if lines else 'no output'}"
