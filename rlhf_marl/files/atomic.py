"""Atomic, fsynced writes, and folder locks."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from rlhf_marl.errors import RunStopped, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)  # values of OSError.errno


def flush(path: Path) -> None:
    """fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(temporary: Path, path: Path) -> None:
    """fsync a file, or a folder whose files are flushed, then rename it: `path` never holds partial content."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        move(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` when the block ends; an error in the block leaves `path` unchanged."""
    temporary = path.with_name(f".{path.name}.tmp")  # hidden: `name.tmp` next to an export may be the user's
    before = path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            flush(item)
        shutil.rmtree(before, ignore_errors=True)
        if path.is_dir():  # no call replaces a folder; after a kill between the two moves it is there as `.old`
            os.replace(path, before)
        move(temporary, path)
        shutil.rmtree(before, ignore_errors=True)
    except BaseException:
        if before.is_dir() and not path.exists():
            os.replace(before, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def locked(folder: Path, where: str, file: str = ".lock") -> Iterator[None]:
    """Hold the lock of a folder, or of what `file` stands for. A process that dies releases its lock.

    Raises:
        UsageError: another process holds it.
    """
    lock = FileLock(folder / file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{where}: {str(folder)!r} is being written by another process") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def or_stop(path: Path, then: str = "continue with --resume") -> Iterator[None]:
    """Context in which a failed write of `path` stops the run: raises RunStopped."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error, then) from None


def unwritable(path: Path, error: Exception, then: str = "continue with --resume") -> RunStopped:
    """The error to raise after a failed write."""
    reason = getattr(error, "strerror", None) or error
    return RunStopped(f"{path} cannot be written: {reason}; free some space and {then}")
