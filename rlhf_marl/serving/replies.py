"""Completions, chunks, models and errors in OpenAI's format, as plain data."""

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from rlhf_marl.policy.alternatives import Likelihood
from rlhf_marl.serving.answers import Answer, Answerer
from rlhf_marl.serving.requests import ChatRequest, Refusal, until_stop

_PIECE = re.compile(r"\s*\S+\s*")
Json = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """One answer, as sent: without what follows a stop sequence. logprobs: OpenAI's object, if asked for."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: Json | None


def choice_of(asked: ChatRequest, answer: Answer, answerer: Answerer) -> Choice:
    """What of an answer was asked for."""
    text = until_stop(answer.text, asked.stop)
    finished = text is not None or answer.finished
    logprobs = None
    if asked.top_logprobs is not None:
        tokens = zip(answer.tokens, answerer.likelihoods(answer, asked.top_logprobs), strict=False)
        logprobs = {"content": [_token(answerer, *pair) for pair in tokens], "refusal": None}
    return Choice(
        answer.text if text is None else text,
        "stop" if finished else "length",
        len(answer.prompt),
        len(answer.tokens),
        logprobs,
    )


def completion(asked: ChatRequest, choices: Sequence[Choice]) -> Json:
    """The reply to a request without streaming."""
    return {
        **_head(asked, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": _usage(choices),
    }


def events(asked: ChatRequest, choices: Sequence[Choice]) -> Iterator[str]:
    """The reply as server-sent events: the whole answers, in chunks of a word."""
    head = _head(asked, "chat.completion.chunk")
    usage = {"usage": None} if asked.usage_chunk else {}
    for index, choice in enumerate(choices):
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in _PIECE.findall(choice.text) or [choice.text]]
        for place, delta in enumerate(deltas):
            logprobs = choice.logprobs if place == 0 else None
            yield _event({**head, "choices": [_chunk(index, delta, None, logprobs)], **usage})
        yield _event({**head, "choices": [_chunk(index, {}, choice.finish_reason, None)], **usage})
    if asked.usage_chunk:
        yield _event({**head, "choices": [], "usage": _usage(choices)})
    yield "data: [DONE]\n\n"


def model_list(names: Sequence[str], created: int) -> Json:
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "rlhf-marl"}


def error(refusal: Refusal) -> Json:
    kind = "invalid_request_error" if refusal.status < 500 and refusal.status != 429 else "server_error"
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.code}}


def _head(asked: ChatRequest, kind: str) -> Json:
    identity = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": asked.model}


def _usage(choices: Sequence[Choice]) -> Json:
    """The prompt counts once."""
    prompt, sampled = choices[0].prompt_tokens, sum(choice.completion_tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _chunk(index: int, delta: Json, finish_reason: str | None, logprobs: Json | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _event(data: Json) -> str:
    return f"data: {json.dumps(data)}\n\n"  # ASCII on one line: no text can end the event


def _token(answerer: Answerer, token: int, likelihood: Likelihood) -> Json:
    return {
        **_alternative(answerer, token, likelihood.log_probability),
        "top_logprobs": [_alternative(answerer, *pair) for pair in likelihood.likeliest],
    }


def _alternative(answerer: Answerer, token: int, log_probability: float) -> Json:
    text = answerer.token_text(token)
    whole = "\N{REPLACEMENT CHARACTER}" not in text  # otherwise part of a character
    return {"token": text, "logprob": log_probability, "bytes": list(text.encode()) if whole else None}
