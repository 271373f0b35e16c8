"""Wall time per stage of training, for metrics.jsonl and `train --profile`."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import final

import torch

STAGES = ("generate", "score", "controller", "critic", "gossip", "update", "validate", "other")


@final
class Stopwatch:
    """Wall time per stage since construction. Time in a nested stage counts only for the inner stage.

    Within `validate`, all time counts for `validate`: the other stages are those of training.

    Attributes:
        total: seconds of every stage up to the last lap.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open = ["other"]
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self.total = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self) -> dict[str, float]:
        """Seconds of every stage since the last lap; they sum to the elapsed time."""
        self._count()
        seconds, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
        self.total = {name: self.total[name] + seconds[name] for name in STAGES}
        return seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context whose time counts for this stage."""
        self._count()
        self._open.append("validate" if "validate" in self._open else name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # GPU kernels run asynchronously
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._last
        self._last = now


_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Stopwatch]:
    """Context in which a stopwatch runs; every `stage` reports to it."""
    watch = Stopwatch(device)
    token = _running.set(watch)
    try:
        yield watch
    finally:
        _running.reset(token)


def stage(name: str) -> AbstractContextManager[None]:
    """Context whose time counts for this stage, if a stopwatch runs."""
    watch = _running.get()
    return watch.stage(name) if watch is not None else nullcontext()
