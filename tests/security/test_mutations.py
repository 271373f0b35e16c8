"""Damaged inputs: each ends in success or in clear lines, never in another error, and leaves the file alone.

`MUTATIONS=5000 pytest tests/security/test_mutations.py` tries more of them than the few of every run.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_marl.config import check_config, load_config
from rlhf_marl.errors import RlhfMarlError
from rlhf_marl.evaluation.questions import load_questions
from rlhf_marl.gridworld.study.config import load_study
from rlhf_marl.paths import DATA_ROOT
from rlhf_marl.report.page import write_report
from rlhf_marl.rewards import load_card
from rlhf_marl.rewards.preferences import load_pairs
from rlhf_marl.run_directory import RunDirectory
from tests.report.runs import write_run

EXAMPLES = int(os.environ.get("MUTATIONS", "30"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MARKS = [
    "",
    "\n",
    "\t",
    "  ",
    ":",
    "- ",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    "#",
    "&a ",
    "*a",
    "!!",
    "|",
    ">",
    "%",
    "@",
    "\\",
]
SCALARS = ["null", "true", "-1", "0", "1e999", ".nan", ".inf", "9" * 400, "1_000", "0x10", "yes", "2026-01-01"]
PIECES = st.sampled_from(MARKS) | st.sampled_from(SCALARS) | st.text(max_size=6)


@st.composite
def edits(draw: Any) -> list[tuple[float, float, str]]:
    """Up to four replacements: where, how much of what is there goes, and what comes."""
    one = st.tuples(st.floats(0, 1), st.floats(0, 0.05), PIECES)
    return draw(st.lists(one, min_size=1, max_size=4))


def edited(text: str, changes: list[tuple[float, float, str]]) -> str:
    for where, share, piece in changes:
        at = round(where * len(text))
        text = text[:at] + piece + text[at + round(share * share * len(text)) :]
    return text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**18) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def replaced(content: Any, path: list[int], value: Any) -> Any:
    """A copy of plain data in which the value at a place is another."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[path[0] % len(keys)]
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[key] = replaced(content[key], path[1:], value)
    return copy


def ends_well(load: Any, *arguments: Any) -> None:
    """Success, or an error of ours whose lines are bounded."""
    told = ""
    try:
        load(*arguments)
    except RlhfMarlError as error:
        told = str(error)
    assert all(len(line) < 2000 for line in told.split("\n"))
    assert told.count("\n") < 60
    assert "Traceback" not in told


CONFIGS = sorted((DATA_ROOT / "configs").glob("*.yaml"))
CARDS = sorted((DATA_ROOT / "reward_models").glob("*.yaml"))


@many
@given(number=st.integers(0, len(CONFIGS) - 1), changes=edits())
def test_edited_configs(tmp_path_factory, number, changes):
    path = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
    path.write_text(edited(CONFIGS[number].read_text("utf-8"), changes), "utf-8", "surrogatepass")
    ends_well(load_study if CONFIGS[number].name == "study.yaml" else load_config, str(path))


@many
@given(number=st.integers(0, len(CONFIGS) - 1), path=st.lists(st.integers(0, 20), max_size=4), value=VALUES)
def test_configs_with_other_values(number, path, value):
    if CONFIGS[number].name != "study.yaml":
        content = yaml.safe_load(CONFIGS[number].read_text("utf-8"))
        ends_well(check_config, replaced(content, path, value), "c.yaml")


@many
@given(number=st.integers(0, len(CARDS) - 1), changes=edits())
def test_edited_cards(tmp_path_factory, number, changes):
    path = tmp_path_factory.mktemp("c", numbered=True) / "c.yaml"
    path.write_text(edited(CARDS[number].read_text("utf-8"), changes), "utf-8", "surrogatepass")
    ends_well(load_card, str(path), "card")


@many
@given(changes=edits())
def test_edited_json_lines(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp("j", numbered=True) / "x.jsonl"
    for name, load, arguments in (
        ("prompts/evaluation.jsonl", load_questions, (file,)),
        ("reward_models/data/helpful.jsonl", load_pairs, (str(file), "--pairs")),
    ):
        text = "\n".join((DATA_ROOT / name).read_text("utf-8").splitlines()[:20]) + "\n"
        file.write_text(edited(text, changes), "utf-8", "surrogatepass")
        ends_well(load, *arguments)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "r", iterations=2)


FILES = ("config.yaml", "metrics.jsonl", "dialogues.jsonl", "environment.json", "reward_models.json", "topology.json")


@settings(many, max_examples=max(10, EXAMPLES // 3))
@given(number=st.integers(0, len(FILES) - 1), changes=edits())
def test_damaged_run_directories(whole_run, number, changes):
    """A report is written or refused, resume is refused or possible, and reading changes no file."""
    file = whole_run / FILES[number]
    if not file.is_file():
        return
    before = file.read_bytes()
    try:
        file.write_text(edited(before.decode("utf-8"), changes), "utf-8", "surrogatepass")
        damaged = file.read_bytes()
        ends_well(write_report, [whole_run], whole_run.parent / "report.html")
        ends_well(RunDirectory.open, whole_run)
        assert file.read_bytes() == damaged
    finally:
        file.write_bytes(before)
