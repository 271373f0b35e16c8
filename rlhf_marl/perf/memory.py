"""Memory for tensors: what is freed is kept, and what happens where it does not suffice."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.sanitise import first_line

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGE = 2**30  # bytes
_WORDS = ("allocate memory", "Tried to allocate", "out of memory", "ALLOC_FAILED")


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


@contextmanager
def fits_into_memory(where: str) -> Iterator[None]:
    """Turn out-of-memory errors into a UsageError that names the config keys that determine memory use."""
    keep_freed_memory()
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            sizes = "model, lora.rank, critic.width, critic.token_features, generation.max_prompt_tokens, agents"
            raise UsageError(f"{where}: does not fit into memory ({first_line(error)}): {sizes}") from None
        raise


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn out-of-memory errors into RunStopped. remedy: what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise RunStopped(f"out of memory ({first_line(_cause(error))}): {remedy}") from None
        raise


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    cause = _cause(error)  # torch on a CPU, and CUDA's libraries, say so in the message alone
    return isinstance(cause, MemoryError) or any(words in str(cause) for words in _WORDS)


def _cause(error: Exception) -> Exception:
    """What was raised in a Ray worker; its error's own text has the whole traceback."""
    return getattr(error, "cause", None) or error
