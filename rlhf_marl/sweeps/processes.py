"""A run's command as a process: on this machine, or on a host of a Ray cluster that has room for it."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, final

from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.distributed.cluster import check_installed, connect, room
from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line


class Process(Protocol):
    """A command that was started."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def stop(self) -> None:
        """As Ctrl-C: a training saves a checkpoint and ends."""
        ...

    def wait(self) -> None: ...


_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before any fork
Start = Callable[[Sequence[str], Path], Process]
"""Starts `python -m rlhf_marl` with these arguments; its output is appended to the file."""


def on_this_machine(jobs: int) -> Start:
    """jobs: processes at a time; unless OMP_NUM_THREADS is set, they share the cores."""
    shared = jobs > 1 and "OMP_NUM_THREADS" not in os.environ
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if shared else {}
    return lambda arguments, log: _Local(_popen(arguments, log, threads))


@contextmanager
def on_cluster(runtime: RuntimeConfig, where: str) -> Iterator[tuple[Start, int]]:
    """How to start processes on the Ray cluster at `runtime.address`, by default the one of this machine; and how many
    of them its hosts have room for, if nobody else uses them. Each reserves `cpus_per_worker` CPUs and
    `gpus_per_worker` GPUs of one host.

    Raises:
        UsageError: Ray cannot be reached, or no host has room for one process.
    """
    end = connect(runtime.model_copy(update={"address": runtime.address or "auto"}), 1, where)
    try:
        yield lambda arguments, log: _OnCluster(arguments, log, runtime), room(runtime)
    finally:
        end()


def cluster_of(runtimes: Sequence[RuntimeConfig], where: str) -> RuntimeConfig:
    """The cluster that the runs' configs name, and what each run reserves there.

    Raises:
        UsageError: the configs differ in it, or put their agents into processes of their own; or Ray is not installed.
    """
    if any(runtime.kind == "ray" for runtime in runtimes):
        raise UsageError(
            f"{where}: runtime.kind: ray puts a run's agents into processes of their own, --runtime ray whole runs; "
            "choose one"
        )
    if any(runtime != runtimes[0] for runtime in runtimes):
        raise UsageError(f"{where}: runtime: with --runtime ray all runs need the same values")
    check_installed(f"{where}: --runtime")
    return runtimes[0]


def _popen(arguments: Sequence[str], log: Path, threads: Mapping[str, str], **options: Any) -> subprocess.Popen:
    with log.open("ab") as output:
        # In a session of its own, so that a terminal's Ctrl-C reaches it once: through `stop`.
        return subprocess.Popen(
            [sys.executable, "-m", "rlhf_marl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **threads},
            start_new_session=True,
            preexec_fn=_end_with_parent if _PRCTL is not None else None,
            **options,
        )


def _end_with_parent() -> None:
    """A training whose sweep or Ray actor is killed saves and ends, so that it holds neither its run nor a host."""
    assert _PRCTL is not None
    _PRCTL(1, signal.SIGINT)  # PR_SET_PDEATHSIG


@final
class _Local:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # nothing, if it has ended

    def wait(self) -> None:
        self._process.wait()


@final
class _OnCluster:
    def __init__(self, arguments: Sequence[str], log: Path, runtime: RuntimeConfig) -> None:
        import ray

        self._log = log
        cpus, gpus = runtime.cpus_per_worker, runtime.gpus_per_worker
        actor: Any = ray.remote(_Host).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=2)
        self._host = actor.remote()
        self._begun = self._host.__ray_ready__.remote()
        self._code = self._host.run.remote(list(arguments), log.absolute(), Path.cwd(), cpus, gpus)

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self._code], timeout=0)[0]:
            return None
        try:
            return ray.get(self._code)
        except ray.exceptions.RayError as error:  # the host went, or does not have the folder
            with self._log.open("a") as log:
                log.write(f"error: {first_line(getattr(error, 'cause', None) or error)}\n")
            return 1

    def stop(self) -> None:
        import ray

        if ray.wait([self._begun], timeout=0)[0]:
            self._host.stop.remote()
        else:  # it waits for room, perhaps for that of the others
            ray.kill(self._host)

    def wait(self) -> None:
        import ray

        ray.wait([self._code])
        ray.kill(self._host)  # gives its CPUs back


@final
class _Host:
    """The Ray actor that runs one command. `stop` comes while `run` waits, in another thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, arguments: list[str], log: Path, folder: Path, threads: int, gpus: float) -> int:
        """The command's exit code, after it ended. folder: where it runs."""
        if missing := [path for path in (folder, log.parent) if not path.is_dir()]:
            raise FileNotFoundError(
                f"{socket.gethostname()} has no folder {missing[0]}: a sweep over a cluster needs a file system that "
                "all hosts share"
            )
        if not gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        # Ray blocks the signal in this thread, and a process inherits that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with self._lock:
            if self._stopped:
                return 130
            own_threads = {"OMP_NUM_THREADS": str(threads)}
            self._process = _popen(arguments, log, own_threads, cwd=folder)
        return self._process.wait()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.send_signal(signal.SIGINT)
