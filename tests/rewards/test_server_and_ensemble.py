import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards import CallableCard, EnsembleCard, ServerCard, build_reward_model, score_all
from tests.conftest import write_card


class ScoringServer(HTTPServer):
    """Answers with the scripted (status, body) pairs, then with the responses' lengths."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, str]] = []
        self.requests: list[tuple[dict, dict]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((body, dict(self.headers)))
        lengths = json.dumps({"scores": [len(text) for text in body["responses"]]})
        status, answer = self.server.script.pop(0) if self.server.script else (200, lengths)
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = ScoringServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def card(server, **options) -> ServerCard:
    return ServerCard(**({"name": "remote", "kind": "http", "url": server.url, "max_retries": 2} | options))


def test_scores_in_batches_in_order(server):
    model = build_reward_model(card(server, batch_size=2))
    assert model.score(["p"] * 5, ["a", "bb", "ccc", "dddd", ""]) == [1, 2, 3, 4, 0]
    assert [body["responses"] for body, _ in server.requests] == [["a", "bb"], ["ccc", "dddd"], [""]]


def test_busy_and_failing_servers_are_asked_again(server):
    server.script = [(429, ""), (503, "")]
    assert build_reward_model(card(server)).score(["p"], ["abc"]) == [3]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([(500, "")] * 3, "failed after 2 retries: RetryError"),
        ([(404, "")], "failed after 2 retries: HTTP 404"),
        ([(200, "<html>")], r"answered '<html>'; expected \{\"scores\": \[...\]\}"),
        ([(200, '{"scores": 3}')], "answered int scores for 1 responses"),
        ([(200, '{"scores": [1, 2]}')], "answered 2 scores for 1 responses"),
    ],
)
def test_a_server_that_cannot_score_stops_the_run_with_one_line(server, script, message):
    server.script = script
    with pytest.raises(RunStopped, match=f"reward model 'remote': {server.url} {message}") as caught:
        build_reward_model(card(server)).score(["p"], ["abc"])
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down(server):
    down = card(server, url="http://127.0.0.1:9/score", max_retries=0)
    with pytest.raises(RunStopped, match="failed after 0 retries: ConnectionError"):
        build_reward_model(down).score(["p"], ["abc"])


def test_nan_from_a_server_names_agent_and_text(server):
    server.script = [(200, '{"scores": [NaN]}')]
    with pytest.raises(RunStopped, match="agent 1: reward model 'remote' returned nan, no finite number"):
        score_all(card(server), build_reward_model(card(server)), ["p"], ["abc"], agent=1)


def test_the_key_comes_from_the_environment_and_stays_out_of_errors(server, monkeypatch):
    with pytest.raises(UsageError, match="the environment variable SCORER_KEY is not set"):
        build_reward_model(card(server, api_key_env="SCORER_KEY"))
    monkeypatch.setenv("SCORER_KEY", "s3cret")
    model = build_reward_model(card(server, api_key_env="SCORER_KEY"))
    assert model.score(["p"], ["ab"]) == [2]
    assert server.requests[-1][1]["Authorization"] == "Bearer s3cret"
    server.script = [(401, "s3cret")]
    with pytest.raises(RunStopped) as caught:
        model.score(["p"], ["ab"])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("combine", "expected"), [("sum", 6.5), ("mean", 6.5 / 1.5), ("minimum", 1.0)])
def test_ensemble_by_hand(tmp_path, combine, expected):
    """'abcdef' has 2 vowels, scaled (2/4 + 0.5) / 1 = 1, and 6 letters, scaled (6 + 5) / 1 = 11; weights 1 and 0.5."""
    for name, function, offset in (("vowels", "count_vowels", 0.5), ("length", "length", 5.0)):
        content = yaml.safe_load(write_card(tmp_path, name, f"tests.conftest:{function}").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content | {"offset": offset}))
    members = [
        {"card": str(tmp_path / "vowels.yaml"), "weight": 1.0},
        {"card": str(tmp_path / "length.yaml"), "weight": 0.5},
    ]
    both = EnsembleCard(name="both", kind="ensemble", combine=combine, members=members)
    assert build_reward_model(both).score(["p"], ["abcdef"]) == pytest.approx([expected])


def trl_reward(completions, prompts=None, bonus=0.0, **kwargs):
    return [len(prompt) + len(text) + bonus for prompt, text in zip(prompts, completions, strict=True)]


def test_trl_reward_functions_fit():
    function = "tests.rewards.test_server_and_ensemble:trl_reward"
    content = CallableCard(name="trl", kind="callable", function=function, convention="trl", arguments={"bonus": 0.5})
    assert build_reward_model(content).score(["ab"], ["cde"]) == [5.5]
