import pytest

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards import ServerCard, build_reward_model
from tests.servers import BUSY, DROPPED, HUNG, TORN, Reply, scores_of_lengths, serving


@pytest.fixture
def server():
    with serving(scores_of_lengths) as server:
        yield server


def card(server, **options) -> ServerCard:
    return ServerCard(**({"name": "remote", "kind": "http", "url": server.url, "max_retries": 2} | options))


def test_scores_in_batches_in_order(server):
    model = build_reward_model(card(server, batch_size=2))
    assert model.score(["p"] * 5, ["a", "bb", "ccc", "dddd", ""]) == [1, 2, 3, 4, 0]
    assert [request.body["responses"] for request in server.requests] == [["a", "bb"], ["ccc", "dddd"], [""]]


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        Reply(429, headers={"Retry-After": "soon"}),
        Reply(503),
        Reply(520),
        DROPPED,
        TORN,
        HUNG,
        Reply(never_begun=True),
        Reply(body={"scores": [1.0]}, dripping=0.1),
        Reply(body="<html>"),
        Reply(body={"scores": [1.0, 2.0]}),
        Reply(body={"scores": [None]}),
        Reply(body='{"scores": [NaN]}'),
        Reply(body='{"scores": [1' + "0" * 400 + "]}"),
    ],
    ids=[
        *("busy", "busy-soon", "503", "520", "dropped", "torn", "hung", "header", "dripping", "html", "two", "null"),
        *("nan", "huge"),
    ],
)
def test_failed_requests_to_a_server_are_retried(server, trouble):
    server.script = [trouble, trouble]
    assert build_reward_model(card(server, timeout=0.5)).score(["p"], ["abc"]) == [3]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "asked", "message"),
    [
        (Reply(500), 3, "failed after 2 retries: HTTP 500"),
        (Reply(429), 3, "failed after 2 retries: HTTP 429"),
        (HUNG, 3, "failed after 2 retries: no complete answer within 0.5 s"),
        (DROPPED, 3, "failed after 2 retries: ConnectionError"),
        (TORN, 3, "failed after 2 retries: ProtocolError"),
        (Reply(404), 1, "refused the request: HTTP 404"),
        (Reply(400, "<b>no\n\x1b[2J"), 1, r"refused the request: HTTP 400: '<b>no \\x1b\[2J'"),
        (
            Reply(307, headers={"Location": "/there"}),
            1,
            "refused the request: HTTP 307: it redirects to '/there'; use that address",
        ),
        (Reply(body="<html>"), 3, r"failed after 2 retries: answered '<html>'; expected \{\"scores\": \[...\]\}"),
        (Reply(body={"scores": 3}), 3, "failed after 2 retries: answered .*3.*; expected .* with finite numbers"),
        (Reply(body={"scores": [True]}), 3, "failed after 2 retries: answered .*true.*; expected"),
        (Reply(body={"scores": ["1"]}), 3, "failed after 2 retries: answered .*1.*; expected"),
        (Reply(body={"scores": [1, 2]}), 3, "failed after 2 retries: answered 2 scores for 1 responses"),
        (Reply(body='{"scores": [NaN]}'), 3, "failed after 2 retries: answered .*NaN.*; expected"),
    ],
)
def test_a_server_that_cannot_score_stops_the_run_with_one_line(server, reply, asked, message):
    server.script = [reply] * 9
    with pytest.raises(RunStopped, match=f"reward model 'remote': {server.url} {message}") as caught:
        build_reward_model(card(server, timeout=0.5)).score(["p"], ["abc"])
    assert "\n" not in str(caught.value)
    assert len(server.requests) == asked


def test_waits_grow_with_jitter_and_retry_after_is_obeyed_within_bounds(server, monkeypatch):
    waits = []
    monkeypatch.setattr("rlhf_marl.services.http._BACKOFF", 0.5)
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    server.script = [Reply(503)] * 5
    build_reward_model(card(server, max_retries=5)).score(["p"], ["abc"])
    assert len(waits) == 4  # the first retry is at once
    assert all(expected <= wait <= expected + 0.5 for expected, wait in zip([1, 2, 4, 8], waits, strict=True))
    assert len({wait % 1 for wait in waits}) > 1
    waits.clear()
    server.script = [Reply(429, headers={"Retry-After": seconds}) for seconds in ("7", "99999999")]
    build_reward_model(card(server)).score(["p"], ["abc"])
    assert waits == [7, 120]


def test_a_server_that_is_down(server):
    down = card(server, url="http://127.0.0.1:9/score", max_retries=0)
    with pytest.raises(RunStopped, match="failed after 0 retries: ConnectionError"):
        build_reward_model(down).score(["p"], ["abc"])


def test_the_key_comes_from_the_environment_and_stays_out_of_errors(server, monkeypatch):
    with pytest.raises(UsageError, match="the environment variable SCORER_KEY is not set"):
        build_reward_model(card(server, api_key_env="SCORER_KEY"))
    monkeypatch.setenv("SCORER_KEY", "s3cret")
    model = build_reward_model(card(server, api_key_env="SCORER_KEY"))
    assert model.score(["p"], ["ab"]) == [2]
    assert server.requests[-1].headers["Authorization"] == "Bearer s3cret"
    server.script = [Reply(401, "s3cret")]
    with pytest.raises(RunStopped) as caught:
        model.score(["p"], ["ab"])
    assert "s3cret" not in str(caught.value)
