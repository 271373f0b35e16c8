"""A scoring server as a reward model."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, Field, ValidationError

from rlhf_marl.config.validation import Address, Retries, Seconds
from rlhf_marl.rewards.base import CardBase, PositiveInt, RewardModel, Text
from rlhf_marl.services.http import Service, Unusable, key_from
from rlhf_marl.services.journal import UNRECORDED, Journal


class ServerCard(CardBase):
    """A scoring server: POST {"prompts": [...], "responses": [...]} answers {"scores": [...]}."""

    kind: Literal["http"]
    url: Address
    api_key_env: Text | None = None
    """Environment variable whose value is sent as a bearer token."""
    timeout: Seconds = 60.0
    """Seconds one request may take."""
    max_retries: Retries = 5
    """Retries with exponential backoff after connection errors, timeouts, 408, 425, 429, 5xx and invalid answers."""
    batch_size: PositiveInt = 32

    def build(self, base: Any, journal: Journal) -> RewardModel:
        return Server(self, journal)

    def scores_with(self) -> str:
        return self.url

    def in_words(self) -> str:
        return "a scoring server"


class _Scores(BaseModel):
    scores: list[Annotated[float, Field(strict=True, allow_inf_nan=False)]]


@final
class Server:
    """POST {"prompts": [...], "responses": [...]}, at most batch_size of each; the answer is {"scores": [...]}.

    Connection errors, timeouts, truncated or invalid answers, 408, 425, 429 and 5xx are retried with exponential
    backoff and jitter; Retry-After is respected. After the last retry, `score` raises RunStopped.
    """

    def __init__(self, card: ServerCard, journal: Journal = UNRECORDED) -> None:
        self._card, self._journal = card, journal
        key = key_from(card.api_key_env, f"card {card.name}") if card.api_key_env is not None else None
        who = f"reward model {card.name!r}: {card.url}"
        self._service = Service(card.url, who, key=key, timeout=card.timeout, max_retries=card.max_retries)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(responses), self._card.batch_size):
            part = slice(start, start + self._card.batch_size)
            scores += self._ask({"prompts": list(prompts[part]), "responses": list(responses[part])})
        return scores

    def _ask(self, body: dict[str, list[str]]) -> list[float]:
        ticket = self._journal.ticket(["http", self._card.name, body])  # no address: it may change
        parse = partial(_scores, wanted=len(body["responses"]))
        return self._journal.answer(ticket, lambda: self._service.ask(body, parse))


def _scores(content: bytes, wanted: int) -> list[float]:
    """Raises Unusable unless there is one finite number per response."""
    try:
        scores = _Scores.model_validate_json(content).scores
    except ValidationError:
        answer = content[:80].decode(errors="replace")
        raise Unusable(f'answered {answer!r}; expected {{"scores": [...]}} with finite numbers') from None
    if len(scores) != wanted:
        raise Unusable(f"answered {len(scores)} scores for {wanted} responses")
    return scores
