"""Validation in training: its lines by hand, its judges, the best adapters, the early stop, and exact resume."""

import json
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import rlhf_marl
from rlhf_marl.dialogue.controller import ScriptedController
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import Questions
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.evaluation.validation import FIRST_DIALOGUE, Prepared, build_validation
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.rewards import load_card
from rlhf_marl.training.build import Experiment
from tests.conftest import tiny_tokenizer, write_card
from tests.killing import differing, state_of_run

QUESTIONS = [
    {"id": "tea", "kind": "ordinary", "prompt": "What is tea?"},
    {"id": "sad", "kind": "multi_turn", "prompt": "I am sad.", "follow_ups": ["Since Monday.", "What helps?"]},
    {"id": "hi", "kind": "ordinary", "prompt": "Hi!"},  # asked in training
]


def letters(prompts, responses):
    return [float(sum(c.isalpha() for c in text)) for text in responses]


def longer_prompt(prompts, responses):
    return [float(len(prompt)) for prompt in prompts]


def not_ones(prompts, responses):
    return [-float(text) for text in responses]


CALLS = {"left": -1, "then": None}


def eventful(prompts, responses):
    """Counts letters; what CALLS says happens before the call after so many others."""
    CALLS["left"] -= 1
    if CALLS["left"] == -1 and CALLS["then"] is not None:
        CALLS["then"]()
    return letters(prompts, responses)


def eventful_too(prompts, responses):
    return eventful(prompts, responses)


def few_letters(prompts, responses):
    return [-score for score in letters(prompts, responses)]


def fail():
    raise OSError("no judge")


@pytest.fixture
def content(quick_content, tmp_path) -> dict:
    """Four iterations, validated after every second one."""
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    validation = {
        "questions": str(tmp_path / "questions.jsonl"),
        "judges": [str(write_card(tmp_path, "letters", "tests.evaluation.test_validation:letters"))],
        "every": 2,
    }
    return quick_content | {"iterations": 4, "actor": {"step_size": 0.05}, "validation": validation}


def judged_by(content, tmp_path, *functions, **changes) -> dict:
    cards = [str(write_card(tmp_path, name, f"tests.evaluation.test_validation:{name}")) for name in functions]
    return content | {"validation": content["validation"] | {"judges": cards} | changes}


class Speakers:
    """A team that learns nothing: agents say their word, and are paid 1 and 3."""

    reward_models = ("one", "two")

    def __init__(self):
        self.asked = []

    def respond(self, prompts, dialogues, turn):
        self.asked.append((list(dialogues), turn))
        return [[Sample([0], word, [0.0], finished=True) for _ in dialogues] for word in ("abc", "z")]

    def score(self, turn):
        rewards = torch.tensor([[1.0] * len(turn.dialogues), [3.0] * len(turn.dialogues)])
        return replace(turn, reward_raw=rewards, reward_scaled=rewards)

    def learn(self, turns):
        return [{"reward_raw": 1.0, "reward_scaled": 1.0}, {"reward_raw": 3.0, "reward_scaled": 3.0}]

    def state_dict(self):
        return {"agent_0.w": torch.zeros(1)}

    def load_state_dict(self, state):
        pass

    def save_adapters(self, folder):
        folder.mkdir(exist_ok=True)


def around(team):
    """Builder of an experiment around a team; the controller repeats agent 0."""

    def builder(config, name, device, journal):
        speakers = [Speaker(name) for name in team.reward_models]
        player = Player(team.respond, ScriptedController("{{ responses[0] }}", ["-"]), tiny_tokenizer(), 64, speakers)
        return Experiment(config, team, player, Questions(["hi?"], 0), [], torch.eye(2), journal)

    return builder


def test_the_lines_by_hand(content, tmp_path, caplog):
    """Agent 0 says three letters, agent 1 one; the team repeats agent 0. Prompts have 12, and 9, 13 and 11 letters."""
    team = Speakers()
    given = judged_by(content, tmp_path, "letters", "longer_prompt")
    run = rlhf_marl.train(given, run_dir=tmp_path / "run", builder=around(team))
    lines = read_jsonl(run.path / "validation.jsonl")
    prompts = (12 + (9 + 13 + 11) / 3) / 2
    scores = {
        "questions": 2,
        "team": (3 + prompts) / 2,
        "agents": [(3 + prompts) / 2, (1 + prompts) / 2],
        "judges": {
            "letters": {"team": 3.0, "agents": [3.0, 1.0]},
            "longer_prompt": {"team": prompts, "agents": [prompts, prompts]},
        },
    }
    rewards = {0: None, 2: 2.0, 4: 2.0}
    assert lines == [
        {"iteration": i, **scores, "training_reward": reward, "early_stop": None} for i, reward in rewards.items()
    ]
    validation = [([FIRST_DIALOGUE, FIRST_DIALOGUE + 1], 0), ([FIRST_DIALOGUE + 1], 1), ([FIRST_DIALOGUE + 1], 2)]
    assert team.asked == [
        *validation, ([0, 1], 0), ([2, 3], 0), *validation, ([4, 5], 0), ([6, 7], 0), *validation
    ]  # fmt: skip
    assert "1 of 3 questions are also asked in training and are left out; the first: hi" in caplog.text


def test_training_is_the_same_with_and_without_validation(content, tmp_path):
    with_it = rlhf_marl.train(content, run_dir=tmp_path / "with")
    without = rlhf_marl.train(content | {"validation": None}, run_dir=tmp_path / "without")
    for name in ("dialogues.jsonl", "critics.safetensors", "adapters/agent_1/adapter_model.safetensors"):
        assert (with_it.path / name).read_bytes() == (without.path / name).read_bytes()
    assert not (without.path / "validation.jsonl").exists()


def test_best_holds_the_adapters_of_the_best_validation(content, tmp_path):
    found = []
    for judge in ("letters", "few_letters"):
        path = tmp_path / judge
        given = judged_by(content, tmp_path, judge, every=3) | {"keep_checkpoints": 1, "iterations": 8}
        given["controller"] = content["controller"] | {"aggregate": "{{ responses | join(' ') }}"}
        rlhf_marl.train(given | {"checkpoint_every": 2}, run_dir=path)
        lines = read_jsonl(path / "validation.jsonl")
        assert [line["iteration"] for line in lines] == [0, 3, 6, 8]
        found.append(max(lines, key=lambda line: line["team"])["iteration"])
        name = f"iteration_{found[-1]:05d}"
        assert json.loads((path / "checkpoints" / "best.json").read_text())["folder"] == name
        stored = load_file(path / "checkpoints" / name / "state.safetensors")["agent_0.adapter"]
        saved = load_file(path / "best" / "agent_0" / "adapter_model.safetensors")
        assert torch.equal(torch.cat([t.flatten() for t in saved.values()]).sort().values, stored.sort().values)
    assert found[0] != found[1]


class Bandits:
    """Agents that say 1 ever more often, for which they are paid."""

    reward_models = ("ones", "ones")

    def __init__(self):
        self.w = 0.0

    def respond(self, prompts, dialogues, turn):
        return [[Sample([0], f"{self.w:.2f}", [0.0], finished=True) for _ in dialogues] for _ in range(2)]

    def score(self, turn):
        rewards = torch.tensor([[float(text) for text in agent] for agent in turn.texts])
        return replace(turn, reward_raw=rewards, reward_scaled=rewards)

    def learn(self, turns):
        paid = turns[0].reward_scaled.mean(-1).tolist()
        self.w += 0.25
        return [{"reward_raw": reward, "reward_scaled": reward} for reward in paid]

    def state_dict(self):
        return {"agent_0.w": torch.tensor([self.w])}

    def load_state_dict(self, state):
        self.w = state["agent_0.w"].item()

    def save_adapters(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "w").write_text(str(self.w))


def test_a_run_ends_early_and_says_so_again_when_resumed(content, tmp_path, capsys):
    """Rewards of the iterations: 0, 0.25, 0.5, ...; held-out 0, -0.25, -0.5, ...: the start is best."""
    given = judged_by(content, tmp_path, "not_ones", every=1, patience=2) | {"iterations": 9}
    run = rlhf_marl.train(given, run_dir=tmp_path / "run", builder=around(Bandits()))
    words = (
        "training ended early after 2 iterations: the training reward rose from +0.000 to +0.250, but the team's "
        "answers to the held-out questions did not improve in the last 2 validations (best +0.000 after 0 iterations, "
        "now -0.500)"
    )
    assert words in capsys.readouterr().err
    lines = read_jsonl(run.path / "validation.jsonl")
    assert [line["early_stop"] for line in lines] == [None, None, words]
    assert [line["team"] for line in lines] == [0.0, -0.25, -0.5]
    assert len(run.metrics) == 4
    assert [(run.path / name / "w").read_text() for name in ("best", "adapters")] == ["0.0", "0.5"]
    state = state_of_run(run.path)
    rlhf_marl.train(given, run_dir=run.path, resume=True, builder=around(Bandits()))
    assert words in capsys.readouterr().err
    assert differing(state_of_run(run.path), state) == []
    longer = given | {"validation": given["validation"] | {"patience": 4}}
    rlhf_marl.train(longer, run_dir=run.path, resume=True, builder=around(Bandits()))
    assert "training ended early after 4 iterations" in capsys.readouterr().err
    assert len(run.metrics) == 8


def test_a_run_that_goes_on_for_longer_ends_early_at_its_next_validation(content, tmp_path, capsys):
    """Its last validation would have ended it, but it was over anyway, and said nothing."""
    given = judged_by(content, tmp_path, "not_ones", every=1, patience=2) | {"iterations": 2}
    run = rlhf_marl.train(given, run_dir=tmp_path / "run", builder=around(Bandits()))
    assert "ended early" not in capsys.readouterr().err
    rlhf_marl.train(given | {"iterations": 9}, run_dir=run.path, resume=True, builder=around(Bandits()))
    assert "training ended early after 3 iterations" in capsys.readouterr().err
    assert [line["early_stop"] is None for line in read_jsonl(run.path / "validation.jsonl")] == [True] * 3 + [False]


def test_a_validations_judge_may_read_the_whole_dialogue(content, tmp_path):
    (tmp_path / "scores.py").write_text("def turns(prompts, completions, **_):\n    return [len(p) for p in prompts]\n")
    card = {"name": "turns", "kind": "callable", "function": "scores.py:turns", "scale": 1.0, "context": "dialogue"}
    (tmp_path / "turns.yaml").write_text(yaml.safe_dump(card | {"convention": "trl", "conversational": True}))
    given = judged_by(content, tmp_path, "not_ones", turns=2)
    given["validation"]["judges"] = [str(tmp_path / "turns.yaml")]
    run = rlhf_marl.train(given, run_dir=tmp_path / "run", builder=around(Bandits()))
    teams = {line["team"] for line in read_jsonl(run.path / "validation.jsonl")}
    assert teams == {2.5}  # messages: (1 + 3) / 2 and (1 + 3 + 5) / 3


@pytest.mark.parametrize("calls", range(3))
def test_a_judge_that_fails_is_asked_again_on_resume(content, tmp_path, monkeypatch, calls):
    given = judged_by(content, tmp_path, "eventful") | {"checkpoint_every": 3}
    whole = state_of_run(rlhf_marl.train(given, run_dir=tmp_path / "whole").path)
    monkeypatch.setitem(CALLS, "left", calls)
    monkeypatch.setitem(CALLS, "then", fail)
    with pytest.raises(RunStopped, match="'eventful' raised OSError: 'no judge'"):
        rlhf_marl.train(given, run_dir=tmp_path / "run")
    assert len(read_jsonl(tmp_path / "run" / "validation.jsonl") if calls else []) == calls
    assert differing(state_of_run(rlhf_marl.train(given, run_dir=tmp_path / "run", resume=True).path), whole) == []


@pytest.mark.parametrize("calls", range(7))
def test_ctrl_c_in_a_validation_or_before_one_changes_nothing(content, tmp_path, monkeypatch, calls):
    """Calls 0, 3 and 6 are those of the judge, the others those of agent 0's reward model."""
    own = {"reward_model": str(write_card(tmp_path, "own", "tests.evaluation.test_validation:eventful_too"))}
    given = judged_by(content, tmp_path, "eventful") | {"agents": [own, *content["agents"][1:]]}
    given |= {"checkpoint_every": 4, "keep_checkpoints": 9}
    whole = state_of_run(rlhf_marl.train(given, run_dir=tmp_path / "whole").path)
    monkeypatch.setitem(CALLS, "left", calls)
    monkeypatch.setitem(CALLS, "then", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        rlhf_marl.train(given, run_dir=tmp_path / "run")
    resumed = state_of_run(rlhf_marl.train(given, run_dir=tmp_path / "run", resume=True).path)
    on_schedule = {"iteration_00000", "iteration_00002", "iteration_00004", "best.json"}
    interrupted = {name for name in resumed if "checkpoints/" in name and name.split("/")[1] not in on_schedule}
    assert [name for name in differing(resumed, whole) if name not in interrupted] == []


def test_a_judge_is_held_against_cards_that_only_the_workers_could_read(tmp_path):
    card = load_card(str(write_card(tmp_path, "letters", f"{__name__}:letters")), "c")
    other = card.model_copy(update={"name": "other", "function": f"{__name__}:not_ones"})
    workers = SimpleNamespace(cards=[other, card])
    with pytest.raises(UsageError, match=r"^c: validation.judges.0: 'letters' trains agent 1; a judge must train"):
        build_validation(Prepared([], 1, [card]), workers, "c", None)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"judges": ["{vowels}"]}, r"c: validation.judges.0: 'vowels' trains agent 0; a judge must train nobody"),
        ({"judges": ["{copy}"]}, r"c: validation.judges.0: 'copy' trains agent 0; a judge must train nobody"),
        ({"judges": ["{length}", "{length}"]}, r"c: validation.judges.1: another judge is also named 'length'"),
        ({"judges": ["none.yaml"]}, r"c: validation.judges.0: .*'none.yaml'"),
        ({"judges": []}, r"c: validation.judges: \[\] given"),
        ({"every": 0}, r"c: validation.every: 0 given"),
        ({"questions": "none.jsonl"}, r"c: validation.questions: .*'none.jsonl'"),
        ({"question": "x"}, r"c: validation.question: unknown key"),
    ],
)
def test_refusals_come_in_one_line_before_anything_is_loaded(content, tmp_path, change, line):
    write_card(tmp_path, "copy", "tests.conftest:count_vowels")
    if "judges" in change:
        change = {"judges": [re.sub(r"{(.*)}", rf"{tmp_path}/\1.yaml", judge) for judge in change["judges"]]}
    given = content | {"validation": content["validation"] | change, "model": {"name": "no-such-model"}}
    with pytest.raises(UsageError, match=line) as error:
        rlhf_marl.train(given, run_dir=tmp_path / "run", name="c")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
