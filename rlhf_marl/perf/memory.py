"""CPU memory allocation for tensors."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 2**30  # bytes


def keep_freed_memory() -> None:
    """Keep freed tensor memory in the process for reuse, instead of returning it to the system each time.

    Each pass allocates the same amount as the previous one. By default glibc returns freed memory to the system, which
    zeroes it again page by page: a quarter of an update's time (docs/performance.md). Other C libraries are left
    unchanged. The process keeps at most its peak, and still returns single blocks of more than a gigabyte.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGE - 1)
