"""Complete runs with a reward server, a judge and a controller behind endpoints that fail midway."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

import rlhf_marl
from tests.killing import differing, state_of_run
from tests.servers import HUNG, Reply, chat, scores_of_lengths, serving


class Killed(BaseException):
    """Stands for SIGKILL."""


class Trouble:
    """Proper answers until `after` of them; then always `reply`, or the process is killed."""

    def __init__(self, answer) -> None:
        self._answer = answer
        self.answered: Counter[str] = Counter()
        self.after: float = float("inf")
        self.reply: Reply = Reply(500)

    def __call__(self, request):
        if self.answered.total() >= self.after:
            return self.reply
        self.answered[str(request.body)] += 1
        return self._answer(request)


@pytest.fixture
def world(tiny_content, tmp_path, monkeypatch):
    """A config that needs three services, and these."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    troubles = {
        "scorer": Trouble(scores_of_lengths),
        "judge": Trouble(chat(lambda asked: str(1 + len(asked) % 5))),
        "controller": Trouble(chat(lambda asked: f"so {len(asked)}")),
    }
    with (
        serving(troubles["scorer"]) as scorer,
        serving(troubles["judge"]) as judge,
        serving(troubles["controller"]) as controller,
    ):
        patience = {"timeout": 2.0, "max_retries": 1}
        cards = {
            "scorer": {"kind": "http", "url": scorer.url, "batch_size": 1},
            "judge": {"kind": "judge", "model": "m", "base_url": f"{judge.url}/v1"},
        }
        for name, card in cards.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name} | card | patience))
        content = tiny_content | {
            "agents": [{"reward_model": str(tmp_path / f"{name}.yaml")} for name in cards],
            "controller": {"kind": "openai", "model": "m", "base_url": f"{controller.url}/v1"} | patience,
            "checkpoint_every": 100,
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        yield content, troubles


@pytest.mark.parametrize(
    ("service", "after", "reply"),
    [
        ("scorer", 3, Reply(500)),  # a half-scored batch
        ("scorer", 6, Reply(429, headers={"Retry-After": "0"})),
        ("judge", 5, HUNG),
        ("judge", 1, Reply(body="<html>")),
        ("controller", 9, Reply(dropped=True)),
    ],
)
def test_a_service_that_dies_stops_the_run_and_nothing_is_asked_twice(world, run, tmp_path, service, after, reply):
    content, troubles = world
    whole = rlhf_marl.train(content, run_dir=tmp_path / "whole")
    expected = {name: trouble.answered.copy() for name, trouble in troubles.items()}
    for trouble in troubles.values():
        trouble.answered.clear()
    troubles[service].after, troubles[service].reply = after, reply
    code, _, errors = run("train", "c.yaml", "--run-dir", "run")
    assert code == 3, errors
    assert [line for line in errors.splitlines() if line.startswith("error: ")] == [errors.splitlines()[-1]]
    assert "failed after 1 retries" in errors
    in_second = after >= 5
    assert [path.name for path in Path("run/checkpoints").glob("iter*")] == ["iteration_00001"] * in_second
    troubles[service].after = float("inf")
    code, _, errors = run("train", "c.yaml", "--run-dir", "run", "--resume")
    assert code == 0, errors
    assert {name: trouble.answered for name, trouble in troubles.items()} == expected
    assert_same(Path("run"), whole.path)


def test_killed_between_a_service_and_the_next_nothing_is_asked_twice(world, tmp_path, monkeypatch):
    """Killed before the second service is asked: the first one's answer is on disk."""
    from rlhf_marl.rewards.judge import Judge

    content, troubles = world
    whole = rlhf_marl.train(content, run_dir=tmp_path / "whole")
    expected = {name: trouble.answered.copy() for name, trouble in troubles.items()}
    for trouble in troubles.values():
        trouble.answered.clear()
    calls = []

    def deadly(judge, prompts, responses):
        calls.append(0)
        if len(calls) == 2:
            raise Killed
        return score(judge, prompts, responses)

    score = Judge.score
    monkeypatch.setattr(Judge, "score", deadly)
    with pytest.raises(Killed):
        rlhf_marl.train(content, run_dir=tmp_path / "run")
    resumed = rlhf_marl.train(content, run_dir=tmp_path / "run", resume=True)
    assert {name: trouble.answered for name, trouble in troubles.items()} == expected
    assert_same(resumed.path, whole.path)


def assert_same(run: Path, whole: Path) -> None:
    """Except the checkpoint of the stop, and the journal, whose order may differ."""
    names = differing(state_of_run(run), state_of_run(whole))
    assert [name for name in names if not name.startswith(("answers/", "checkpoints/iteration_00001/"))] == []


def test_answers_that_no_checkpoint_needs_are_removed(world, tmp_path):
    content, _ = world
    rlhf_marl.train(content | {"iterations": 4, "checkpoint_every": 1}, run_dir=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "answers").iterdir()) == ["iteration_00003.jsonl"]


def test_a_run_goes_on_with_services_that_have_moved(world, run, tmp_path):
    """With other addresses and longer timeouts; requests answered at the old addresses are not sent again."""
    content, troubles = world
    rlhf_marl.train(content, run_dir=tmp_path / "whole")
    expected = {name: trouble.answered.copy() for name, trouble in troubles.items()}
    for trouble in troubles.values():
        trouble.answered.clear()
    troubles["controller"].after = 9
    code, _, errors = run("train", "c.yaml", "--run-dir", "run")
    assert code == 3, errors
    troubles["controller"].after = float("inf")
    scorer = yaml.safe_load((tmp_path / "scorer.yaml").read_text())
    with (
        serving(troubles["scorer"]) as moved,
        serving(troubles["controller"]) as other,
    ):
        (tmp_path / "scorer.yaml").write_text(yaml.safe_dump(scorer | {"url": f"{moved.url}/new", "max_retries": 2}))
        moving = ["--controller.base_url", f"{other.url}/v2", "--controller.timeout", "3"]
        code, _, errors = run("train", "c.yaml", "--run-dir", "run", "--resume", *moving)
        assert code == 0, errors
        assert {request.path for request in other.requests} == {"/v2/chat/completions"}
    assert {name: trouble.answered for name, trouble in troubles.items()} == expected
    assert moved.url in Path("run/reward_models.json").read_text()
    assert f"{other.url}/v2" in Path("run/config.yaml").read_text()
