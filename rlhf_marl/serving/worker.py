"""One thread that does everybody's work: a bounded queue, served in turns, whose jobs can be dropped at any time."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

Part = TypeVar("Part")


class Busy(Exception):
    """The queue is full."""


class Dropped(Exception):
    """The job under way has been cancelled. Raised by `check`, to end its work early."""


@final
@dataclass(eq=False, slots=True)
class _Job(Generic[Part]):
    parts: Sequence[Callable[[], Part]]
    future: "Future[list[Part]]" = field(default_factory=Future)
    done: list[Part] = field(default_factory=list)


@final
class Worker(Generic[Part]):
    """Jobs consist of parts. After each part another job has its turn, so a long job does not hold up the others.

    Cancelling a job's future drops the job: at once if it waits, and at the next `check` if it is under way.
    """

    def __init__(self, size: int) -> None:
        """size: largest number of jobs, with the one under way."""
        self._size = size
        self._waiting: deque[_Job[Part]] = deque()
        self._under_way: _Job[Part] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, parts: Sequence[Callable[[], Part]]) -> "Future[list[Part]]":
        """Queue a job; its result are those of its parts, in order. Raises Busy if the queue is full or closed."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.future.done())
            if self._closed or len(self._waiting) + (self._under_way is not None) >= self._size:
                raise Busy
            job = _Job(parts)
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def check(self, *_: object) -> None:
        """Raise Dropped if the job under way is no longer wanted. Call often from within parts."""
        job = self._under_way
        if job is not None and job.future.cancelled() and threading.current_thread() is self._thread:
            raise Dropped

    def close(self, patience: float = 5.0) -> None:
        """Cancel all jobs and end the thread; waits up to `patience` seconds for it."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *([self._under_way] if self._under_way else [])):
                job.future.cancel()
            self._changed.notify()
        self._thread.join(patience)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                job = self._under_way = self._waiting.popleft()
            more = self._advance(job)
            with self._changed:
                self._under_way = None
                if more:
                    self._waiting.append(job)

    def _advance(self, job: _Job[Part]) -> bool:
        """Do one part; returns whether there are more."""
        if job.future.cancelled():
            return False
        try:
            job.done.append(job.parts[len(job.done)]())
        except BaseException as error:  # whatever it is, the thread goes on with the other jobs
            with suppress(InvalidStateError):  # cancelled meanwhile
                job.future.set_exception(error)
            return False
        if len(job.done) < len(job.parts):
            return True
        with suppress(InvalidStateError):
            job.future.set_result(job.done)
        return False
