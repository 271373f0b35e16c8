"""Damaged inputs: each ends in success or in clear lines, never in another error or a hang, and what is refused stays.

`MUTATIONS=1000 python -m pytest -s tests/security/test_mutations.py` tries more than the few of every run, and prints
how many of each kind went well and how many were refused.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import rlhf_marl
from rlhf_marl.config import check_config, load_config
from rlhf_marl.config.schema import JsonlPrompts
from rlhf_marl.dialogue.questions import load_questions as load_prompts
from rlhf_marl.errors import RunStopped
from rlhf_marl.evaluation.questions import load_questions
from rlhf_marl.evaluation.rescore import rescored
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.gridworld.study.config import load_study
from rlhf_marl.policy.instructions import Task, load_instructions
from rlhf_marl.reporting.page import write_report
from rlhf_marl.rewards import build_reward_model, load_card
from rlhf_marl.rewards.preferences import load_pairs
from rlhf_marl.rewards.tools import read_texts
from rlhf_marl.training.build import build
from tests.conftest import tiny_llama, tiny_tokenizer
from tests.rewards.test_sequence_classifier import saved
from tests.security.mutating import (
    LIKELY,
    MOST_NUMBERS,
    OUTCOMES,
    PIECES,
    PLACES,
    VALUES,
    contents,
    damage,
    edited,
    edits,
    ends_well,
    few,
    many,
    replaced,
)


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    if "MUTATIONS" in os.environ:
        print("\n| what is done with the input | inputs | fine | one clear line |\n| --- | --- | --- | --- |")
        for kind, found in OUTCOMES.items():
            print(f"| {kind} | {found.total()} | {found['fine']} | {found['refused']} |")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model, a tiny classifier, cards of all kinds, and a run that was trained and evaluated."""
    folder = tmp_path_factory.mktemp("world")
    tiny_llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    callable_ = {"name": "vowels", "kind": "callable", "function": "tests.conftest:count_vowels"}
    member = {"card": str(folder / "vowels.yaml"), "weight": 0.5}
    cards = {
        "vowels": callable_,
        "ensemble": {"name": "both", "kind": "ensemble", "combine": "mean", "members": [member, member]},
        "served": {"name": "served", "kind": "http", "url": "http://127.0.0.1:9/x", "max_retries": 0, "timeout": 1.0},
        "judge": {"name": "judge", "kind": "judge", "model": str(folder / "model"), "grades": ["1", "2", "3"]},
        "classifier": saved(folder / "classifier", "llama") | {"device": "cpu", "max_tokens": 60},
    }
    for name, card in cards.items():
        (folder / f"{name}.yaml").write_text(json.dumps(card, indent=1))  # which is YAML too
    content = {
        "iterations": 2,
        "dialogues": 2,
        "turns": 1,
        "model": {"name": str(folder / "model")},
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [{"reward_model": str(folder / "vowels.yaml")}, {"reward_model": str(folder / "ensemble.yaml")}],
        "generation": {"max_new_tokens": 3, "max_prompt_tokens": 64, "temperature": 1.0},
        "prompts": {"source": "fixed", "question": "hi?"},
        "controller": {"kind": "scripted", "next_prompts": ["{{ prompt }}"], "aggregate": "{{ responses[0] }}"},
        "topology": {"graph": "ring", "gossip_rounds": 3, "laziness": 0.1},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001, "radius": 10.0},
        "actor": {"step_size": 0.001, "signal": "td_v", "kl_coefficient": 0.1},
        "checkpoint_every": 1,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    rlhf_marl.train(content, run_dir=folder / "run")
    evaluation(folder / "run", folder)
    return folder


def evaluation(run: Path, world: Path) -> Any:
    return rlhf_marl.evaluate(run, limit=2, max_new_tokens=4, judges=(str(world / "vowels.yaml"),))


CONFIGS = sorted((DATA_ROOT / "configs").glob("*.yaml"))
CARDS = sorted((DATA_ROOT / "reward_models").glob("*.yaml"))
KEYS = ["seed", "agents.0", "agents.²", "agents.reward_model", "a.b", "", ".", "topology.edges", "lora.targets"]
KEYS += [
    "actor.signal",
    "actor.step_size",
    "critic.width",
    "critic.radius",
    "generation.temperature",
    "controller.kind",
]
INSTRUCTIONS = ("prompts/judge.yaml", "prompts/controller.yaml")


@many
@given(number=st.integers(0, len(CONFIGS) - 1), changes=edits())
def test_edited_configs(tmp_path_factory, number, changes):
    path = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
    path.write_text(edited(CONFIGS[number].read_text("utf-8"), changes), "utf-8", "surrogatepass")
    load = load_study if CONFIGS[number].name == "study.yaml" else load_config
    ends_well("shipped configs, edited as text: read", load, str(path))


@many
@given(path=PLACES, value=VALUES, twice=st.none() | st.tuples(PLACES, VALUES))
def test_configs_with_other_values(world, path, value, twice):
    """Configs that pass the checks are built."""
    content = replaced(yaml.safe_load((world / "c.yaml").read_text()), path, value)
    if twice is not None:
        content = replaced(content, *twice)
    config = ends_well("a config with other values: checked", check_config, content, "c.yaml")
    if isinstance(config, Exception) or config.tracker != "none" or config.prompts.source == "datasets":
        return
    critic = config.critic.width * (config.critic.width * config.critic.depth + config.critic.token_features * 600)
    if (critic + 10**4 * config.lora.rank) * len(config.agents) < MOST_NUMBERS:
        ends_well("... built with a tiny model", build, config, "c.yaml", torch.device("cpu"))


@many
@given(key=st.sampled_from(KEYS) | st.text(max_size=12), value=PIECES | st.sampled_from(LIKELY).map(str))
def test_command_lines(key, value):
    ends_well("a command line", load_config, "configs/quickstart.yaml", [f"--{key}", value])


@many
@given(number=st.integers(0, len(CARDS) - 1), changes=edits())
def test_edited_cards(tmp_path_factory, number, changes):
    path = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
    path.write_text(edited(CARDS[number].read_text("utf-8"), changes), "utf-8", "surrogatepass")
    ends_well("shipped cards, edited as text: read", load_card, str(path), "card")


@few
@given(
    name=st.sampled_from(["vowels", "ensemble", "served", "judge", "classifier"]),
    path=PLACES,
    value=VALUES,
    changes=st.none() | edits(),
)
def test_cards_with_other_values(world, tmp_path_factory, name, path, value, changes):
    """Cards that can be read are built."""
    file = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
    text = (world / f"{name}.yaml").read_text()
    text = json.dumps(replaced(json.loads(text), path, value)) if changes is None else edited(text, changes)
    file.write_text(text, "utf-8", "surrogatepass")
    card = ends_well("a card with other values: read", load_card, str(file), "card")
    if not isinstance(card, Exception) and card.kind not in ("trained", "prototype"):
        ends_well("... built", build_reward_model, card)


@many
@given(name=st.sampled_from(INSTRUCTIONS), changes=edits())
def test_edited_instructions(tmp_path_factory, name, changes):
    from rlhf_marl.dialogue.controller import load_templates

    file = tmp_path_factory.mktemp("i", numbered=True) / "i.yaml"
    file.write_text(edited((DATA_ROOT / name).read_text("utf-8"), changes), "utf-8", "surrogatepass")

    def load(file):
        return load_templates(file, ["a", "b"]) if "controller" in name else load_instructions(file, Task)

    ends_well("instructions, edited as text", load, file)


def texts(source: str) -> str:
    """The first lines of a shipped file."""
    return "\n".join((DATA_ROOT / source).read_text("utf-8").splitlines()[:20]) + "\n"


@many
@given(changes=edits(), number=st.integers(0, 19), path=PLACES, value=VALUES, structured=st.booleans())
def test_edited_json_lines(tmp_path_factory, changes, number, path, value, structured):
    file = tmp_path_factory.mktemp("j", numbered=True) / "x.jsonl"
    for kind, source, load in (
        ("questions of an evaluation", "prompts/evaluation.jsonl", load_questions),
        ("preference pairs", "reward_models/data/helpful.jsonl", lambda file: load_pairs(str(file), "--pairs")),
        ("prompts of a training", "prompts/evaluation.jsonl", prompts_of),
        ("texts to score", "reward_models/data/helpful.jsonl", read_texts),
    ):
        text = texts(source).replace('"chosen"', '"response"') if load is read_texts else texts(source)
        if structured:
            lines = text.splitlines()
            lines[number % len(lines)] = json.dumps(replaced(json.loads(lines[number % len(lines)]), path, value))
            text = "\n".join(lines) + "\n"
        else:
            text = edited(text, changes)
        file.write_text(text, "utf-8", "surrogatepass")
        ends_well(f"JSON Lines: {kind}", load, file)


def prompts_of(file: Path) -> Any:
    return load_prompts(JsonlPrompts(source="jsonl", path=str(file)), 0, "c.yaml")


@pytest.fixture
def damaged(world, tmp_path_factory) -> Callable[[Callable[[Path], str]], Path]:
    """A copy of the run, in which one file is damaged."""

    def copy(change: Callable[[Path], str]) -> Path:
        run = tmp_path_factory.mktemp("r", numbered=True) / "run"
        shutil.copytree(world / "run", run)
        change(run)
        return run

    return copy


@few
@given(change=damage(), more=st.integers(0, 1))
def test_damaged_runs_are_resumed_or_refused(world, damaged, capsys, change, more):
    """A refused run is unchanged; a resumed run is intact afterwards."""
    run = damaged(change)
    before = contents(run)
    found = ends_well("a damaged run: resumed", resume, run, world, more)
    if isinstance(found, Exception):
        assert isinstance(found, RunStopped) or contents(run) == before, found
    else:
        assert not isinstance(ends_well("... and what came of it, again", resume, run, world, more), Exception)
    shutil.rmtree(run)
    capsys.readouterr()


@few
@given(change=damage())
def test_damaged_runs_are_read_or_refused(world, damaged, capsys, change):
    """Reading changes nothing."""
    run = damaged(change)
    before = contents(run)
    ends_well("a damaged run: reported", write_report, [run], run.parent / "report.html")
    ends_well("a damaged run: exported", rlhf_marl.export, run, agent=0, to=run.parent / "exported")
    ends_well("a damaged run: rescored", rescored, run, [str(world / "vowels.yaml")])
    assert contents(run) == before
    ends_well("a damaged run: evaluated", evaluation, run, world)
    shutil.rmtree(run)
    capsys.readouterr()


def resume(run: Path, world: Path, more: int) -> Any:
    content = yaml.safe_load((world / "c.yaml").read_text())
    return rlhf_marl.train(content | {"iterations": 2 + more}, run_dir=run, resume=True)
