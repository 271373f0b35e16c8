"""A run's dialogues, scored with other reward models."""

import json

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.rescore import rescored
from tests.conftest import write_card
from tests.reporting.runs import write_run


def test_means_per_card_agent_and_iteration_by_hand(tmp_path):
    """Agent 0 says 1 and 3 letters in iteration 1, so 2 on average; every other text has one letter."""
    path = write_run(tmp_path / "run")
    turns = [
        {"iteration": iteration, "prompt": "p", "responses": [{"text": "x" * n}, {"text": "x"}, {"text": "x"}]}
        for iteration, n in ((1, 1), (1, 3), (2, 5))
    ]
    (path / "dialogues.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    rows = rescored(path, [str(write_card(tmp_path, name, "tests.conftest:length")) for name in ("one", "two")])
    found = {(row["card"], row["agent"], row["iteration"]): row["reward_scaled"] for row in rows}
    assert {key[0] for key in found} == {"one", "two"}
    assert (found["one", 0, 1], found["one", 0, 2]) == (found["two", 0, 1], found["two", 0, 2]) == (2.0, 5.0)
    assert (found["two", 1, 1], found["two", 1, 2]) == (1.0, 1.0)


def test_a_run_without_dialogues_is_refused(tmp_path):
    path = write_run(tmp_path / "run")
    (path / "dialogues.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"reward rescore: .* has no finished dialogues yet"):
        rescored(path, [])
