"""Client of an OpenAI-compatible chat endpoint: parallel requests, greedy decoding, bounded retries."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, final

from pydantic import BaseModel, Field, ValidationError

from rlhf_marl.policy.chat import Message
from rlhf_marl.services.http import Service, Unusable, key_from
from rlhf_marl.services.journal import UNRECORDED, Journal

_OPENAI = "https://api.openai.com/v1"
_PARALLEL = 8


# The fields of a chat completion that are used. Endpoints are untrusted, so each field is validated.
class Alternative(BaseModel):
    token: str
    logprob: Annotated[float, Field(allow_inf_nan=False)]


class Token(BaseModel):
    top_logprobs: list[Alternative] = []


class LogProbabilities(BaseModel):
    content: list[Token] | None = None


class ChatMessage(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    message: ChatMessage
    logprobs: LogProbabilities | None = None


class Completion(BaseModel):
    choices: list[Choice]


@final
class Endpoint:
    """where: the caller, named in error messages. The key is read only from the environment variable api_key_env."""

    def __init__(
        self,
        where: str,
        model: str,
        *,
        api_key_env: str,
        base_url: str | None,
        timeout: float,
        max_retries: int,
        journal: Journal = UNRECORDED,
    ) -> None:
        """Raises UsageError if the variable is not set."""
        self._model, self._journal = model, journal
        place = base_url or _OPENAI
        self._service = Service(
            f"{place.rstrip('/')}/chat/completions",
            f"{where}: {model} at {place}",
            key=key_from(api_key_env, where),
            timeout=timeout,
            max_retries=max_retries,
        )

    def ask(self, conversations: Sequence[Sequence[Message]], max_tokens: int, **options: Any) -> list[Choice | None]:
        """The first choice of each completion, or None where the endpoint returned none.

        Raises:
            RunStopped: the endpoint still fails after all retries.
        """
        requests = [
            {"model": self._model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0, **options}
            for messages in conversations
        ]
        tickets = [self._journal.ticket(["chat", request]) for request in requests]  # no address: it may change
        with ThreadPoolExecutor(max_workers=min(_PARALLEL, len(requests))) as pool:
            kept = list(pool.map(lambda t, r: self._journal.answer(t, lambda: self._complete(r)), tickets, requests))
        try:
            return [Choice.model_validate(choice) if choice is not None else None for choice in kept]
        except ValidationError:
            raise self._service.stopped("has an invalid recorded answer: remove the run's answers/") from None

    def _complete(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The first choice as plain data."""
        choices = self._service.ask(request, _completion).choices
        return choices[0].model_dump() if choices else None


def _completion(content: bytes) -> Completion:
    try:
        return Completion.model_validate_json(content)
    except ValidationError:
        answer = content[:80].decode(errors="replace")
        raise Unusable(f"answered {answer!r}, which is not a chat completion") from None


def text_of(choice: Choice | None) -> str:
    """A choice's text; empty if there is none."""
    return (choice.message.content or "") if choice is not None else ""
