"""A scoring server as reward model."""

import os
from collections.abc import Sequence
from typing import final

import requests
from urllib3.util import Retry

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards.card import ServerCard


@final
class Server:
    """POST {"prompts": [...], "responses": [...]}, at most batch_size of each; the answer is {"scores": [...]}.

    Connection errors, timeouts, 429 and 5xx are retried with exponential backoff and jitter, and Retry-After is obeyed.
    When that does not help, `score` raises RunStopped.
    """

    def __init__(self, card: ServerCard) -> None:
        self._card = card
        self._session = requests.Session()
        if card.api_key_env is not None:
            key = os.environ.get(card.api_key_env)
            if not key:
                raise UsageError(
                    f"card {card.name}: api_key_env: the environment variable {card.api_key_env} is not set"
                )
            self._session.headers["Authorization"] = f"Bearer {key}"
        retry = Retry(
            total=card.max_retries,
            backoff_factor=0.5,
            backoff_jitter=0.5,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=("POST",),
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(responses), self._card.batch_size):
            part = slice(start, start + self._card.batch_size)
            scores += self._ask({"prompts": list(prompts[part]), "responses": list(responses[part])})
        return scores

    def _ask(self, body: dict[str, list[str]]) -> list[float]:
        card = self._card
        try:
            answer = self._session.post(card.url, json=body, timeout=card.timeout)
            answer.raise_for_status()
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            reason = f"HTTP {status}" if status else type(error).__name__
            raise RunStopped(
                f"reward model {card.name!r}: {card.url} failed after {card.max_retries} retries: {reason}"
            ) from None
        try:
            scores = answer.json()["scores"]
        except (ValueError, KeyError, TypeError):
            raise RunStopped(
                f'reward model {card.name!r}: {card.url} answered {answer.text[:80]!r}; expected {{"scores": [...]}}'
            ) from None
        if not isinstance(scores, list) or len(scores) != len(body["responses"]):
            count = len(scores) if isinstance(scores, list) else type(scores).__name__
            raise RunStopped(
                f"reward model {card.name!r}: {card.url} answered {count} scores for {len(body['responses'])} responses"
            )
        return scores
