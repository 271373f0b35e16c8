"""Keys come only from the environment, and are written nowhere."""

import json
import os

import pytest
import yaml
from click.testing import CliRunner

import rlhf_marl
from rlhf_marl.cli.commands import cli
from rlhf_marl.config import check_config
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.policy.chat import Message
from rlhf_marl.rewards import ServerCard, build_reward_model, check_card
from rlhf_marl.services.endpoint import Endpoint
from tests.servers import Reply, chat, scores_of_lengths, serving

CHAT_KEY, SCORE_KEY = "sk-chat-7d1f0c2b9a", "sk-score-51e8aa04bd"


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", CHAT_KEY)
    monkeypatch.setenv("SCORE_KEY", SCORE_KEY)


def content_of(tiny_content, folder, chat_url, score_url):
    """Two agents: one scored by a server, and a controller behind an endpoint."""
    card = {"kind": "http", "name": "served", "url": score_url, "api_key_env": "SCORE_KEY", "max_retries": 1}
    (folder / "served.yaml").write_text(yaml.safe_dump(card))
    controller = {"kind": "openai", "model": "m", "base_url": f"{chat_url}/v1", "api_key_env": "CHAT_KEY"}
    agents = [{"reward_model": str(folder / "served.yaml")}, *tiny_content["agents"][1:]]
    return tiny_content | {"agents": agents, "controller": controller | {"max_retries": 1}}


def everything_under(folder) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_keys_are_sent_and_written_nowhere(tiny_content, tmp_path, keys, capfd, caplog):
    with serving(chat(lambda text: "fine")) as talker, serving(scores_of_lengths) as scorer:
        content = content_of(tiny_content, tmp_path, talker.url, scorer.url)
        rlhf_marl.train(content, run_dir=tmp_path / "run")
        assert {request.headers["Authorization"] for request in talker.requests} == {f"Bearer {CHAT_KEY}"}
        assert {request.headers["Authorization"] for request in scorer.requests} == {f"Bearer {SCORE_KEY}"}
        rlhf_marl.evaluate(tmp_path / "run", limit=2)
    written = everything_under(tmp_path)
    assert b"served" in written  # the search does see what was written
    shown = "".join(capfd.readouterr()) + caplog.text
    for key in (CHAT_KEY, SCORE_KEY):
        assert key.encode() not in written
        assert key not in shown


@pytest.mark.parametrize("broken", ["talker", "scorer"])
def test_a_service_that_repeats_the_key_does_not_get_it_into_an_error(
    tiny_content, tmp_path, keys, capfd, caplog, broken
):
    """Some services echo the key in the text of a refusal."""
    told = Reply(401, {"error": {"message": f"no such key: {CHAT_KEY} {SCORE_KEY}"}})
    with serving(chat(lambda text: "fine")) as talker, serving(scores_of_lengths) as scorer:
        (talker if broken == "talker" else scorer).answer = lambda request: told
        content = content_of(tiny_content, tmp_path, talker.url, scorer.url)
        with pytest.raises(RunStopped) as caught:
            rlhf_marl.train(content, run_dir=tmp_path / "run")
    own = CHAT_KEY if broken == "talker" else SCORE_KEY
    assert own not in str(caught.value)
    assert own.encode() not in everything_under(tmp_path)
    assert own not in "".join(capfd.readouterr()) + caplog.text


ECHOES = {  # each 200, with the Authorization header of the request at KEY
    "as a score": '{"scores": ["KEY", 1.0]}',
    "for scores": '{"error": "who is KEY?"}',
    "across the cut": '{"error": "' + "x" * 55 + ' KEY"}',
    "in nonsense": "<html>KEY",
}


@pytest.mark.parametrize("body", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("broken", ["talker", "scorer"])
def test_a_key_in_an_answer_of_status_200_does_not_get_into_an_error(keys, broken, body):
    def echo(request):
        return Reply(200, body.replace("KEY", request.headers["Authorization"]))

    with serving(echo) as server, pytest.raises(RunStopped) as caught:
        ask(broken, server.url)
    own = CHAT_KEY if broken == "talker" else SCORE_KEY
    assert all(own[:n] not in str(caught.value) for n in range(6, len(own)))


def ask(service, url):
    if service == "talker":
        options = {"api_key_env": "CHAT_KEY", "base_url": url, "timeout": 5, "max_retries": 0}
        return Endpoint("controller", "m", **options).ask([[Message(role="user", content="hi")]], 9)
    card = ServerCard(name="s", kind="http", url=url, api_key_env="SCORE_KEY", max_retries=0)
    return build_reward_model(card).score(["p"], ["a"])


@pytest.mark.parametrize("spelled", ["-", "\\u002d"])
def test_a_key_in_an_answer_of_status_200_is_not_written_down(tiny_content, tmp_path, keys, capfd, spelled):
    """Neither in the dialogues nor in the journal, however JSON escapes it."""
    completion = chat(lambda text: "your key is KEY")

    def echo(request):
        return json.dumps(completion(request)).replace("KEY", CHAT_KEY.replace("-", spelled))

    with serving(echo) as talker, serving(scores_of_lengths) as scorer:
        rlhf_marl.train(content_of(tiny_content, tmp_path, talker.url, scorer.url), run_dir=tmp_path / "run")
    written = everything_under(tmp_path / "run")
    assert b"your key is ***" in written
    assert CHAT_KEY.encode() not in written
    assert CHAT_KEY not in "".join(capfd.readouterr())


def test_a_key_that_is_a_placeholder_does_not_damage_answers(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", "none")
    with serving(chat(lambda text: "none of them")) as server:
        (choice,) = ask("talker", server.url)
    assert choice.message.content == "none of them"


@pytest.mark.parametrize("key", ["ключ-12345678", "sk-1\nX-Header: 1", " sk-12345678"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_repeated(monkeypatch, key):
    for service, variable in (("talker", "CHAT_KEY"), ("scorer", "SCORE_KEY")):
        monkeypatch.setenv(variable, key)
        with pytest.raises(
            UsageError, match=f"api_key_env: the environment variable {variable} does not hold a valid"
        ) as c:
            ask(service, "http://127.0.0.1:9")
        assert "12345678" not in str(c.value)


def test_the_key_is_not_the_one_of_the_users_netrc(monkeypatch, tmp_path, keys):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(scores_of_lengths) as server:
        ask("scorer", server.url)
    assert server.requests[0].headers["Authorization"] == f"Bearer {SCORE_KEY}"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://me:pass1234@host/v1", "an address must not contain a user name or password"),
        ("ftp://me:pass1234@host/v1", "not a valid address; it must be http://host"),
        ("http://me:pass1234@[::1/v1", "not a valid address; it must be http://host"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(tiny_content, address, words):
    controller = {"kind": "openai", "model": "m", "base_url": address}
    card = {"name": "s", "kind": "http", "url": address}
    judge = {"name": "s", "kind": "judge", "model": "m", "base_url": address}
    for check, content in (
        (check_config, tiny_content | {"controller": controller}), (check_card, card), (check_card, judge)
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"(base_url|url): {words}") as caught:
            check(content, "c.yaml")
        assert "pass1234" not in str(caught.value)


def test_a_key_in_the_config_is_refused_and_not_repeated(tiny_content, tmp_path):
    content = tiny_content | {"controller": {"kind": "openai", "model": "m", "api_key": CHAT_KEY}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    environment = dict(os.environ)
    result = CliRunner(env=environment).invoke(cli, ["train", str(tmp_path / "c.yaml")])
    assert result.exit_code != 0
    assert CHAT_KEY not in result.output + str(result.exception)
