"""Asking a service that may be down, slow, busy, or talk nonsense: bounded tries, growing waits with jitter."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import TypeVar

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses that may go better next time
_BACKOFF = 0.5  # seconds: no wait before the first retry, then 1, 2, 4, ... and up to _BACKOFF more by chance
_LONGEST_WAIT = 120  # seconds, also where a server's Retry-After asks for more
_LARGEST_ANSWER = 64 * 2**20  # bytes

Answer = TypeVar("Answer")


class Unusable(Exception):
    """An attempt failed in a way that may go better next time; headers: what came, for its Retry-After."""

    def __init__(self, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.headers = headers or {}


def persistently(attempt: Callable[[], Answer], retries: int) -> Answer:
    """Try, and again at most `retries` times after Unusable, the last of which is raised."""
    waits = Retry(
        total=None, backoff_factor=_BACKOFF, backoff_jitter=_BACKOFF, backoff_max=_LONGEST_WAIT,
        retry_after_max=_LONGEST_WAIT,
    )  # fmt: skip
    for _ in range(retries):
        try:
            return attempt()
        except Unusable as problem:
            waits = waits.increment()
            try:
                waits.sleep(SimpleNamespace(headers=problem.headers))
            except (InvalidHeader, ValueError, OverflowError):  # a Retry-After that is neither seconds nor a date
                waits.sleep()
    return attempt()


def read_whole(chunks: Iterable[bytes], seconds: float) -> bytes:
    """A body as it comes; raises Unusable if it takes longer or is larger than any answer."""
    deadline = time.monotonic() + seconds
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > _LARGEST_ANSWER:
            raise Unusable(f"an answer of more than {_LARGEST_ANSWER >> 20} MiB")
        if time.monotonic() > deadline:
            raise Unusable(f"no whole answer in {seconds:g} s")
    return bytes(body)
