"""A chat completion's request: each field is honoured, or refused by its name in OpenAI's error format."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.conversations import read_messages
from rlhf_marl.sanitise import printable, shortened
from rlhf_marl.serving.answers import TEAM, Sampling

MOST_CHOICES = 16
_MOST_MESSAGES = 512
_MOST_STOPS, _LONGEST_STOP = 4, 256  # sequences; characters of one
_LARGEST_SEED = 2**63 - 1


class Refusal(Exception):
    """A request that is not answered: HTTP status, and the fields of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: bool | None = None  # padding of chunks: there is none, as with false


class _Format(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


_Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]],
    Field(max_length=_MOST_STOPS),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
_Zero = Annotated[float, Field(ge=0, le=0)] | None
_Nothing = Annotated[list[Any], Field(max_length=0)] | None


class _Body(BaseModel):
    """Fields that are honoured, those that are accepted at the value that changes nothing, and those ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: Annotated[list[Any], Field(min_length=1, max_length=_MOST_MESSAGES)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] | None = None
    stop: _Stop | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    presence_penalty: _Zero = None
    frequency_penalty: _Zero = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tools: _Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: _Format | None = None
    store: Literal[False] | None = None

    user: Any = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    service_tier: Any = None


@final
@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request.

    Attributes:
        choices: how each of the answers is sampled.
        top_logprobs: likeliest tokens to name at each place; None: no log-probabilities.
    """

    model: str
    messages: Sequence[Message]
    choices: Sequence[Sampling]
    stop: Sequence[str]
    stream: bool
    usage_chunk: bool
    top_logprobs: int | None


def read_request(content: bytes, models: Sequence[str], most_tokens: int) -> ChatRequest:
    """Check a request's body.

    Args:
        models: names that can be asked. most_tokens: the largest max_tokens.

    Raises:
        Refusal: names the field, what was given and what is allowed.
    """
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is not JSON.") from None
    if not isinstance(data, dict):
        raise Refusal(400, "The body must be a JSON object.")
    try:
        body = _Body.model_validate(data)
    except ValidationError as error:
        raise _refusal(error) from None
    if body.model not in models:
        raise Refusal(
            404,
            f"The model {shortened(body.model)} does not exist; choose {', '.join(models)}",
            param="model",
            code="model_not_found",
        )
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is not None and max_tokens > most_tokens:
        raise Refusal(400, f"max_tokens: {max_tokens} given; this server allows {most_tokens}", param="max_tokens")
    temperature = body.temperature
    if temperature is not None and 0 < temperature < 0.001:
        raise Refusal(400, f"temperature: {temperature} given; use 0, or 0.001 to 2", param="temperature")
    if body.top_p not in (None, 1) and temperature != 0:
        reason = "agents sample from the whole distribution, as they were trained; use 1, or temperature 0"
        raise Refusal(400, f"top_p: {body.top_p} is not supported: {reason}", param="top_p", code="unsupported_value")
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if body.top_logprobs and not body.logprobs:
        raise Refusal(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
    stop = body.stop or []
    if top_logprobs is not None and (body.model == TEAM or stop):
        reason = "together with stop" if stop else "for team, whose answer is the controller's"
        raise Refusal(400, f"logprobs: not supported {reason}", param="logprobs", code="unsupported_value")
    seed = secrets.randbelow(_LARGEST_SEED) if body.seed is None else body.seed
    return ChatRequest(
        body.model,
        _messages(body.messages),
        [Sampling(seed, number, max_tokens, temperature) for number in range(body.n or 1)],
        stop,
        bool(body.stream),
        body.stream_options is not None and body.stream_options.include_usage,
        top_logprobs,
    )


def until_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop sequence; None if it has none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def _messages(given: Sequence[Any]) -> list[Message]:
    try:
        messages = read_messages([_with_text(message) for message in given], "messages")
    except ValueError as error:
        raise Refusal(400, printable(f"{error}."), param="messages") from None
    if any(message["role"] == "system" for message in messages[1:]):
        raise Refusal(400, "messages: only the first may have the role system", param="messages")
    if messages[-1]["role"] != "user":
        raise Refusal(
            400, f"messages: the last must be the user's; it is the {messages[-1]['role']}'s", param="messages"
        )
    return messages


def _with_text(message: Any) -> Any:
    """The message with a list of text parts joined to one text; anything else unchanged."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise ValueError("a message's content has parts other than text")
    texts = [part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a message's content has a part without text")
    return message | {"content": "".join(texts)}


def _refusal(error: ValidationError) -> Refusal:
    """The first mistake."""
    detail = error.errors(include_url=False)[0]
    param = printable(str(detail["loc"][0]))[:80]
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        return Refusal(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if detail["type"] == "missing" and len(detail["loc"]) == 1:
        message = f"Missing required parameter: '{param}'."
        return Refusal(400, message, param=param, code="missing_required_parameter")
    given = printable(shortened(detail["input"]))
    return Refusal(
        400, f"Invalid value for '{param}': {given} given; {detail['msg']}.", param=param, code="invalid_value"
    )
