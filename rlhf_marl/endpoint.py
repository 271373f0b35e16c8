"""An OpenAI-compatible chat endpoint, asked in parallel; greedy, with bounded retries."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, final

import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from rlhf_marl.chat import Message
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.journal import UNRECORDED, Journal
from rlhf_marl.services import RETRIED, Unusable, persistently, read_whole

_PARALLEL = 8


# The parts of a chat completion that are used; what an endpoint sends may be anything.
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
    """who: what asks, for the error line. The key comes from the environment variable api_key_env alone."""

    def __init__(
        self,
        who: str,
        model: str,
        *,
        api_key_env: str,
        base_url: str | None,
        timeout: float,
        max_retries: int,
        journal: Journal = UNRECORDED,
    ) -> None:
        """Raises UsageError if the variable is not set."""
        key = os.environ.get(api_key_env)
        if not key:
            raise UsageError(f"{who}: api_key_env: the environment variable {api_key_env} is not set")
        self._who, self._model, self._key, self._retries = who, model, key, max_retries
        self._timeout, self._journal = timeout, journal
        self._place = base_url or "the default OpenAI endpoint"
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)

    def ask(self, conversations: Sequence[Sequence[Message]], max_tokens: int, **options: Any) -> list[Choice | None]:
        """The first choice of each completion, or None where the endpoint returned none.

        Raises:
            RunStopped: the endpoint still fails after all retries.
        """
        requests = [
            {"model": self._model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0, **options}
            for messages in conversations
        ]
        tickets = [self._journal.ticket([self._place, request]) for request in requests]
        with ThreadPoolExecutor(max_workers=min(_PARALLEL, len(requests))) as pool:
            kept = list(pool.map(lambda t, r: self._journal.answer(t, lambda: self._complete(r)), tickets, requests))
        return [Choice.model_validate(choice) if choice is not None else None for choice in kept]

    def _complete(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The first choice as plain data."""
        try:
            choices = persistently(lambda: self._attempt(request), self._retries).choices
        except Unusable as problem:
            raise self._stopped(f"failed after {self._retries} retries: {problem}") from None
        return choices[0].model_dump() if choices else None

    def _attempt(self, request: dict[str, Any]) -> Completion:
        try:
            with self._client.chat.completions.with_streaming_response.create(**request) as answer:
                content = read_whole(answer.iter_bytes(), self._timeout)
        except openai.APIStatusError as error:
            if error.status_code in RETRIED or error.status_code >= 500:
                raise Unusable(self._told(error), error.response.headers) from None
            raise self._stopped(f"refuses: {self._told(error)}") from None
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise Unusable(self._told(error)) from None
        try:
            return Completion.model_validate_json(content)
        except ValidationError:
            raise Unusable(f"answered {content[:80].decode(errors='replace')!r}, no chat completion") from None

    def _told(self, error: Exception) -> str:
        reason = (str(error).splitlines() or [""])[0][:200]
        return f"{type(error).__name__}: {reason}"

    def _stopped(self, reason: str) -> RunStopped:
        return RunStopped(f"{self._who}: {self._model} at {self._place} {reason}".replace(self._key, "***"))


def text_of(choice: Choice | None) -> str:
    """A choice's text; empty if there is none."""
    return (choice.message.content or "") if choice is not None else ""
