"""Requests: what is read from good ones, and one error for bad ones."""

import json

import pytest

from rlhf_marl.serving.answers import Sampling
from rlhf_marl.serving.requests import Refusal, read_request, until_stop

MODELS = ["base", "agent-0", "team"]
HI = {"role": "user", "content": "hi"}
GOOD = {"model": "base", "messages": [HI]}


def read(body):
    return read_request(json.dumps(body).encode(), MODELS, 100)


def test_the_smallest_request_leaves_everything_as_in_training():
    asked = read(GOOD)
    (sampling,) = asked.choices
    assert (asked.model, asked.messages, asked.stop, asked.stream) == ("base", [HI], [], False)
    assert sampling == Sampling(sampling.seed, 0, None, None)
    assert read(GOOD).choices[0].seed != sampling.seed


def test_every_field_is_read():
    asked = read(
        GOOD
        | {"temperature": 0.5, "max_tokens": 7, "n": 2, "seed": 3, "stop": "x", "stream": True, "logprobs": False}
        | {"stream_options": {"include_usage": True}, "top_p": 1, "presence_penalty": 0, "user": "me", "tools": []}
        | {"response_format": {"type": "text"}, "logit_bias": {}, "metadata": {"a": "b"}, "store": False}
    )
    assert asked.choices == [Sampling(3, 0, 7, 0.5), Sampling(3, 1, 7, 0.5)]
    assert (asked.stop, asked.stream, asked.usage_chunk, asked.top_logprobs) == (["x"], True, True, None)
    assert read(GOOD | {"max_completion_tokens": 9}).choices[0].max_tokens == 9
    assert read(GOOD | {"logprobs": True, "top_logprobs": 4}).top_logprobs == 4
    assert read(GOOD | {"temperature": 0, "top_p": 0.5}).choices[0].temperature == 0


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read(GOOD | {"messages": [{"role": "user", "content": parts}]}).messages == [HI | {"content": "ab"}]


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": "gpt-4"}, 404, "model", "The model 'gpt-4' does not exist; choose base, agent-0, team"),
        ({"model": None}, 400, "model", "Invalid value for 'model': None given"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [HI] * 513}, 400, "messages", "at most 512 items"),
        ({"messages": "hi"}, 400, "messages", "valid list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "has the role 'tool'"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages", "message 1 of messages is empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", "message 1 of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "other than text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages", "without text"),
        ({"messages": [HI, {"role": "system", "content": "x"}, HI]}, 400, "messages", "only the first"),
        ({"messages": [HI, {"role": "assistant", "content": "x"}]}, 400, "messages", "it is the assistant's"),
        ({"temperature": 3}, 400, "temperature", "3 given; Input should be less than or equal to 2"),
        ({"temperature": 1e-9}, 400, "temperature", "use 0, or 0.001 to 2"),
        ({"top_p": 0.9}, 400, "top_p", "0.9 is not supported: agents sample from the whole distribution"),
        ({"max_tokens": 101}, 400, "max_tokens", "101 given; this server allows 100"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"n": 17}, 400, "n", "less than or equal to 16"),
        ({"seed": -1}, 400, "seed", "greater than or equal to 0"),
        ({"seed": True}, 400, "seed", "valid integer"),
        ({"stop": ["a"] * 5}, 400, "stop", "at most 4 items"),
        ({"stop": ""}, 400, "stop", "at least 1 character"),
        ({"tools": [{}]}, 400, "tools", "at most 0 items"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "less than or equal to 0"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "'json_object' given"),
        ({"top_logprobs": 5}, 400, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "model": "team"}, 400, "logprobs", "whose answer is the controller's"),
        ({"logprobs": True, "stop": "x"}, 400, "logprobs", "together with stop"),
        ({"\x1b[2Jwarp\u202e": 9}, 400, "\\x1b[2Jwarp\\u202e", "Unknown parameter: '\\x1b[2Jwarp\\u202e'."),
    ],
)
def test_bad_requests(change, status, param, words):
    with pytest.raises(Refusal) as refused:
        read(GOOD | change)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert words in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"temperature": NaN}', b"3"],
)
def test_bodies_that_are_no_request(content):
    with pytest.raises(Refusal) as refused:
        read_request(content, MODELS, 100)
    assert refused.value.status == 400


def test_a_missing_field_is_named():
    with pytest.raises(Refusal, match="Missing required parameter: 'messages'") as refused:
        read({"model": "base"})
    assert refused.value.code == "missing_required_parameter"


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [("abcabc", ["c", "bc"], "a"), ("abc", ["x"], None), ("abc", [], None), ("abc", ["abc"], "")],
)
def test_text_ends_before_the_first_stop_sequence(text, stops, left):
    assert until_stop(text, stops) == left
