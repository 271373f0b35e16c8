"""How the process gets memory for tensors on the CPU."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 2**30  # bytes


def keep_freed_memory() -> None:
    """Let the process keep the memory that tensors free, for the next ones, instead of giving it back each time.

    A pass needs the same megabytes as the one before. glibc gives them back to the system as soon as they are free, and
    the system clears them anew, page by page: a quarter of an update's time (docs/performance.md). Other C libraries
    stay as they are. The process keeps at most its peak, and gives back single blocks of more than a gigabyte.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
