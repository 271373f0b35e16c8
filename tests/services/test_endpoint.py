"""The chat endpoint client over real HTTP, against a local test server."""

import pytest

from rlhf_marl.dialogue.controller import (
    endpoint_chat,
)
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.policy.chat import Message
from rlhf_marl.services.endpoint import Choice, Endpoint, text_of
from rlhf_marl.services.journal import Journal
from tests.servers import BUSY, DROPPED, HUNG, TORN, Reply, chat, serving


@pytest.fixture
def server(monkeypatch):
    """A chat endpoint that echoes."""
    monkeypatch.setenv("CHAT_KEY", "secret")
    with serving(chat(lambda asked: f"echo {asked}")) as server:
        yield server


def ask(server, *texts, max_retries=2):
    options = {"api_key_env": "CHAT_KEY", "base_url": f"{server.url}/v1", "timeout": 1.0, "max_retries": max_retries}
    chat = endpoint_chat(Endpoint("controller", "m", **options))
    return chat([[Message(role="user", content=text)] for text in texts], 9)


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        Reply(500),
        Reply(503, "<html>"),
        DROPPED,
        TORN,
        HUNG,
        Reply(500, "x" * 100, dripping=0.3),
        Reply(body="<html>"),
        Reply(body="[]"),
        Reply(body={"choices": "abc"}),
        Reply(body={"choices": [{}]}),
        Reply(body={"choices": []}, dripping=0.3),
    ],
)
def test_failed_requests_to_an_endpoint_are_retried(server, trouble):
    server.script = [trouble, trouble]
    assert sorted(ask(server, "a", "b")) == ["echo a", "echo b"]
    assert len(server.requests) == 4
    assert server.requests[0].body["max_tokens"] == 9
    assert server.requests[0].headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "asked", "message"),
    [
        (Reply(500, {"error": {"message": "down, secret"}}), 2, "failed after 1 retries: HTTP 500"),
        (
            Reply(body="secret nonsense"),
            2,
            r"failed after 1 retries: answered '\*\*\* nonsense', which is not a chat completion",
        ),
        (Reply(401, {"error": {"message": "who is secret?"}}), 1, r"refused the request: HTTP 401: .*who is \*\*\*"),
    ],
)
def test_an_endpoint_that_stays_down_stops_the_run_without_showing_the_key(server, reply, asked, message):
    server.script = [reply] * 5
    with pytest.raises(RunStopped, match=f"controller: m at {server.url}/v1 {message}") as caught:
        ask(server, "a", max_retries=1)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) == asked


def test_the_request_is_greedy_and_takes_options(server):
    endpoint = Endpoint("x", "m", api_key_env="CHAT_KEY", base_url=f"{server.url}/v1/", timeout=1.0, max_retries=0)
    (choice,) = endpoint.ask([[Message(role="user", content="a")]], 3, logprobs=True)
    assert text_of(choice) == "echo a"
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 3,
        "temperature": 0.0,
        "logprobs": True,
    }


def test_a_completion_without_choices_gives_none(server):
    server.script = [Reply(body={"choices": []})]
    endpoint = Endpoint("x", "m", api_key_env="CHAT_KEY", base_url=f"{server.url}/v1", timeout=1.0, max_retries=0)
    assert endpoint.ask([[Message(role="user", content="a")]], 3) == [None]
    assert text_of(None) == ""
    assert text_of(Choice.model_validate({"message": {"content": None}})) == ""


def test_recorded_answers_are_replayed_even_if_the_endpoint_has_moved(server, tmp_path):
    for place in (f"{server.url}/v1", "http://127.0.0.1:9/v2"):
        journal = Journal(tmp_path / "answers")
        journal.begin(1)
        options = {"api_key_env": "CHAT_KEY", "base_url": place, "timeout": 1.0, "max_retries": 0}
        endpoint = Endpoint("x", "m", journal=journal, **options)
        assert text_of(endpoint.ask([[Message(role="user", content="a")]], 3)[0]) == "echo a"
    assert len(server.requests) == 1


def test_without_its_key_there_is_no_endpoint(monkeypatch):
    monkeypatch.delenv("CHAT_KEY", raising=False)
    with pytest.raises(UsageError, match="x: api_key_env: the environment variable CHAT_KEY is not set"):
        Endpoint("x", "m", api_key_env="CHAT_KEY", base_url=None, timeout=1.0, max_retries=0)
