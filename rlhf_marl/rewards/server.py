"""A scoring server as reward model."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any, final

import requests
from urllib3.exceptions import HTTPError

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.journal import UNRECORDED, Journal
from rlhf_marl.rewards.card import ServerCard
from rlhf_marl.services import RETRIED, Unusable, persistently, read_whole


@final
class Server:
    """POST {"prompts": [...], "responses": [...]}, at most batch_size of each; the answer is {"scores": [...]}.

    Connection errors, timeouts, torn or nonsensical answers, 429 and 5xx are retried with exponential backoff and
    jitter, and Retry-After is obeyed. When that does not help, `score` raises RunStopped.
    """

    def __init__(self, card: ServerCard, journal: Journal = UNRECORDED) -> None:
        self._card, self._journal = card, journal
        self._session = requests.Session()
        if card.api_key_env is not None:
            key = os.environ.get(card.api_key_env)
            if not key:
                raise UsageError(
                    f"card {card.name}: api_key_env: the environment variable {card.api_key_env} is not set"
                )
            self._session.headers["Authorization"] = f"Bearer {key}"

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(responses), self._card.batch_size):
            part = slice(start, start + self._card.batch_size)
            scores += self._ask({"prompts": list(prompts[part]), "responses": list(responses[part])})
        return scores

    def _ask(self, body: dict[str, list[str]]) -> list[float]:
        card = self._card
        ticket = self._journal.ticket([card.url, body])
        try:
            return self._journal.answer(ticket, lambda: persistently(lambda: self._attempt(body), card.max_retries))
        except Unusable as problem:
            raise RunStopped(
                f"reward model {card.name!r}: {card.url} failed after {card.max_retries} retries: {problem}"
            ) from None

    def _attempt(self, body: dict[str, list[str]]) -> list[float]:
        card = self._card
        try:
            with self._session.post(card.url, json=body, timeout=card.timeout, stream=True) as answer:
                if answer.status_code in RETRIED:
                    raise Unusable(f"HTTP {answer.status_code}", answer.headers)
                if not answer.ok:
                    raise RunStopped(f"reward model {card.name!r}: {card.url} refuses: HTTP {answer.status_code}")
                # What has come, not a full buffer: so that the clock is looked at.
                parts = iter(lambda: answer.raw.read1(2**16, decode_content=True), b"")
                content = read_whole(parts, card.timeout)
        except (requests.RequestException, HTTPError) as error:
            raise Unusable(type(error).__name__) from None
        return _scores(content, len(body["responses"]))


def _scores(content: bytes, wanted: int) -> list[float]:
    """The numbers of an answer; raises Unusable if it is not one finite number per response."""
    try:
        scores: Any = json.loads(content)["scores"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Unusable(f'answered {content[:80].decode(errors="replace")!r}; expected {{"scores": [...]}}') from None
    if not isinstance(scores, list) or len(scores) != wanted:
        count = len(scores) if isinstance(scores, list) else type(scores).__name__
        raise Unusable(f"answered {count} scores for {wanted} responses")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise Unusable(f"answered {str(score)[:80]!r} as a score, no finite number")
    return [float(score) for score in scores]
