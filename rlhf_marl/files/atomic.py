"""Files that are there whole or not at all, on the disk and not only on their way to it; and who may write them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_marl.errors import RunStopped, UsageError

FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: no room is left


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(temporary: Path, path: Path) -> None:
    """Give a file, or a folder whose files are flushed, its name: content first, so that the name is never of half."""
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content, whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        move(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `path`: whole or not at all, whatever names the files had."""
    temporary = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            flush(item)
        shutil.rmtree(path, ignore_errors=True)
        move(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def locked(folder: Path, where: str) -> Iterator[None]:
    """Inside, no other process holds this folder's lock; the lock of a dead process does not hold.

    Raises:
        UsageError: another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{where}: {str(folder)!r} is being written by another process") from None
    try:
        yield
    finally:
        lock.release()


def unwritable(path: Path, error: Exception, then: str = "go on with --resume") -> RunStopped:
    """What to raise when the disk refuses."""
    reason = getattr(error, "strerror", None) or error
    return RunStopped(f"{path} cannot be written: {reason}; make room and {then}")
