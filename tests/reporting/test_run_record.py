"""Reading a run directory."""

import json

import pytest

from rlhf_marl.reporting.run_record import read_run
from tests.reporting.runs import CARDS, write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def test_episode_is_the_mean_over_turns(run_dir):
    run = read_run(run_dir)
    assert len(run.episodes[0]) == 12
    assert run.episodes[0] == pytest.approx([0.1 * k for k in range(12)])
    assert run.episodes[2][0] == pytest.approx(1.0)


def test_damaged_lines_are_counted(run_dir):
    lines = (run_dir / "dialogues.jsonl").read_text().splitlines()
    lines[3] = "[1, 2]"
    lines[7] = json.dumps({"iteration": 1})
    (run_dir / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(run_dir)
    assert "dialogues.jsonl: 2 damaged lines were skipped; the first is line 4" in run.notes
    assert sum(len(dialogue["turns"]) for dialogue in run.dialogues) == 34


def test_cards_are_named(run_dir):
    assert read_run(run_dir).agents == list(CARDS)
