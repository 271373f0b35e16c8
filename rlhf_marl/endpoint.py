"""An OpenAI-compatible chat endpoint, asked in parallel; greedy, with the client's own retries."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import openai

from rlhf_marl.chat import Message
from rlhf_marl.errors import RunStopped, UsageError

_PARALLEL = 8


@final
class Endpoint:
    """who: what asks, for the error line. The key comes from the environment variable api_key_env alone."""

    def __init__(
        self, who: str, model: str, *, api_key_env: str, base_url: str | None, timeout: float, max_retries: int
    ) -> None:
        """Raises UsageError if the variable is not set."""
        key = os.environ.get(api_key_env)
        if not key:
            raise UsageError(f"{who}: api_key_env: the environment variable {api_key_env} is not set")
        self._who, self._model, self._key, self._retries = who, model, key, max_retries
        self._place = base_url or "the default OpenAI endpoint"
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=max_retries)

    def ask(self, conversations: Sequence[Sequence[Message]], max_tokens: int, **options: Any) -> list[Any]:
        """The first choice of each completion, or None where the endpoint returned none.

        Raises:
            RunStopped: the endpoint still fails after all retries.
        """
        with ThreadPoolExecutor(max_workers=min(_PARALLEL, len(conversations))) as pool:
            return list(pool.map(lambda messages: self._complete(messages, max_tokens, options), conversations))

    def _complete(self, messages: Sequence[Message], max_tokens: int, options: dict[str, Any]) -> Any:
        try:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=list(messages),  # type: ignore[arg-type]
                max_tokens=max_tokens,
                temperature=0.0,
                **options,
            )
        except openai.OpenAIError as error:
            reason = str(error).splitlines()[0].replace(self._key, "***")[:200] if str(error) else ""
            raise RunStopped(
                f"{self._who}: {self._model} at {self._place} failed after {self._retries} retries: "
                f"{type(error).__name__}: {reason}"
            ) from None
        return answer.choices[0] if answer.choices else None


def text_of(choice: Any) -> str:
    """A choice's text; empty if there is none."""
    return (choice.message.content or "") if choice is not None else ""
