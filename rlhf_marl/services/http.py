"""HTTP client for unreliable or hostile services: bounded retries, total time and response size; keys never leak."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, TypeVar, final

import requests
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util import Retry

from rlhf_marl.errors import RunStopped, UsageError

RETRIED = frozenset({408, 425, 429})  # HTTP statuses that are retried, in addition to 5xx
_BACKOFF = 0.5  # seconds: no wait before the first retry, then 1, 2, 4, ... plus jitter of up to _BACKOFF
_LONGEST_WAIT = 120  # seconds, even if a server's Retry-After asks for more
_LARGEST_ANSWER = 64 * 2**20  # bytes
_LARGEST_REFUSAL = 2**16  # bytes read of an error's body
_SHOWN = 200  # characters of a service's response shown in error messages
_SHORTEST_SECRET = 8  # characters; shorter keys (EMPTY, none) are placeholders, common words in responses

Answer = TypeVar("Answer")


class Unusable(Exception):
    """A failed attempt that should be retried. headers: those of the response, for Retry-After."""

    def __init__(self, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.headers = headers or {}


class Refused(Exception):
    """The service rejected the request; a retry would not help."""


@final
class Service:
    """One address and its key. The key never appears in results or errors, even if the service echoes it."""

    def __init__(self, address: str, who: str, *, key: str | None, timeout: float, max_retries: int) -> None:
        """who: named in the error that stops a run."""
        self._address, self._who, self._key, self._timeout, self._retries = address, who, key, timeout, max_retries
        self._session = requests.Session()
        if key is not None:
            self._session.auth = _Bearer(key)

    def ask(self, body: Any, parse: Callable[[bytes], Answer]) -> Answer:
        """POST a JSON body, with retries, and parse the response; `parse` raises Unusable if it should be retried.

        Raises:
            RunStopped: the request still fails after the last retry, or the service refuses it.
        """
        try:
            return _persistently(lambda: parse(self.post(body)), self._retries)
        except Unusable as problem:
            raise self.stopped(f"failed after {self._retries} retries: {problem}") from None
        except Refused as problem:
            raise self.stopped(f"refused the request: {problem}") from None

    def stopped(self, reason: str) -> RunStopped:
        """The error that stops a run, without the key."""
        return RunStopped(self.hide(f"{self._who} {reason}"))

    def post(self, body: Any) -> bytes:
        """POST a JSON body and return the response body, with the key removed.

        Raises:
            Unusable: no connection, a timeout, a truncated or oversized response, or a busy server.
            Refused: any other status outside 2xx.
        """
        outcome: Future[bytes] = Future()

        def work() -> None:
            try:
                outcome.set_result(self._post(body, time.monotonic() + self._timeout))
            except BaseException as error:
                outcome.set_exception(error)

        # In a thread: no library bounds the time of a DNS lookup or of slow response headers.
        threading.Thread(target=work, daemon=True).start()
        try:
            return outcome.result(self._timeout)
        except TimeoutError:
            raise self._late() from None

    def hide(self, text: str) -> str:
        """The text without the key."""
        return text if self._key is None else text.replace(self._key, "***")

    def _post(self, body: Any, deadline: float) -> bytes:
        try:
            with self._session.post(
                self._address, json=body, timeout=self._timeout, stream=True, allow_redirects=False
            ) as answer:
                if 200 <= answer.status_code < 300:
                    return self._read(answer, deadline, _LARGEST_ANSWER)
                reason = f"HTTP {answer.status_code}"
                if answer.status_code in RETRIED or answer.status_code >= 500:
                    raise Unusable(reason, answer.headers)
                if (place := answer.headers.get("Location")) is not None:
                    raise Refused(f"{reason}: it redirects to {self.hide(place)[:_SHOWN]!r}; use that address instead")
                said = " ".join(self._read(answer, deadline, _LARGEST_REFUSAL).decode(errors="replace").split())
                raise Refused(f"{reason}: {said[:_SHOWN]!r}" if said else reason)
        except requests.Timeout:
            raise self._late() from None
        except (requests.RequestException, HTTPError) as error:
            raise Unusable(type(error).__name__) from None

    def _read(self, answer: requests.Response, deadline: float, largest: int) -> bytes:
        # Read what has arrived instead of waiting for a full buffer, to check the deadline often.
        parts: Iterable[bytes] = iter(lambda: answer.raw.read1(2**16, decode_content=True), b"")
        content = bytearray()
        for part in parts:
            content += part
            if len(content) > largest:
                raise Unusable(f"an answer of more than {largest:,} bytes")
            if time.monotonic() > deadline:
                raise self._late()
        return self._without_key(bytes(content))

    def _late(self) -> Unusable:
        return Unusable(f"no complete answer within {self._timeout:g} s")

    def _without_key(self, content: bytes) -> bytes:
        """The content without the key. Call before parsing or truncating, so that no part of the key survives."""
        if self._key is None or len(self._key) < _SHORTEST_SECRET:
            return content
        with contextlib.suppress(ValueError, RecursionError):
            content = json.dumps(json.loads(content)).encode()  # JSON can escape a letter in several ways: normalise
        for written in (self._key, json.dumps(self._key)[1:-1]):
            content = content.replace(written.encode(), b"***")
        return content


@final
class _Bearer(requests.auth.AuthBase):
    """Passed as `auth`, since requests lets the user's .netrc override a plain header."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def key_from(variable: str, where: str) -> str:
    """The key in an environment variable. Raises UsageError, without showing the value, if it is not a valid key."""
    key = os.environ.get(variable)
    if not key:
        raise UsageError(f"{where}: api_key_env: the environment variable {variable} is not set")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise UsageError(
            f"{where}: api_key_env: the environment variable {variable} does not hold a valid key: it has surrounding "
            "spaces, line ends or non-ASCII characters"
        )
    return key


def _persistently(attempt: Callable[[], Answer], retries: int) -> Answer:
    """Call `attempt`, with at most `retries` retries after Unusable. Raises the last Unusable."""
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
