"""Evaluations in the terminal and as Markdown, from a file written by hand."""

import io
import json

import pytest
from rich.console import Console

from rlhf_marl.reporting.evaluation_tables import markdown, show, show_recorded, show_side_by_side
from tests.reporting.runs import write_run


@pytest.fixture
def result(tmp_path):
    return json.loads((write_run(tmp_path / "run") / "evaluation.json").read_text("utf-8"))


def printed(show_it, *arguments):
    console = Console(file=io.StringIO(), width=200)
    show_it(*arguments, console)
    return " ".join(console.file.getvalue().split())


def test_one_run_in_full(result):
    text = printed(show, result)
    assert "4 questions: base → trained [95% of the difference]" in text
    assert "own reward 0.25 → 1.50 0.25 → 1.50" in text
    assert "[1.15, 1.35]" in text
    assert "win rate decided by held" in text
    assert "controller fell back (share of turns): 0.00 → 0.25 [0.15, 0.35]" in text
    assert "own reward, one answer of the base model → trained team: 0.25 → 0.75 [0.40, 0.60]" in text
    assert "held-out judges, one answer" not in text  # not measured
    assert "agent 0 (vowels): better on its own reward, worse on held-out judges: likely hacked" in text


def test_runs_side_by_side(result):
    comparison = {"agents": [{"length": None}], "team": {"length": None}, "warnings": ["turns differs"]}
    text = printed(show_side_by_side, ["one", "two"], [result, result], {"two": comparison})
    assert "own reward +1.25 +1.25" in text
    assert "trained agents of two against those of one: difference" in text
    assert "tokens – –" in text
    assert "warning: two: turns differs" in text


def test_markdown_has_a_row_per_metric_and_judge(result):
    lines = markdown(result).splitlines()
    assert lines[2] == "| own reward | " + "0.25 → 1.50 [1.15, 1.35] | " * 3 + "0.25 → 1.50 [1.15, 1.35] |"
    assert lines[7] == "| KL to base | " + "0.30 [0.20, 0.40] | " * 3 + "– |"
    assert lines[-5].startswith("| by held (held out) | 1.00 → 1.00")
    assert lines[-3].startswith("- agent 0 (vowels): better on its own reward")


def test_recorded_rewards_of_a_run_that_cannot_be_evaluated():
    rows = [{"agent": 0, "reward_model": "[red]kind", "reward_scaled": float(i)} for i in range(10)]
    assert "0 [red]kind +0.500 +8.500" in printed(show_recorded, rows)
    assert printed(show_recorded, []) == ""
