"""Reading a run that may be damaged."""

import json

import pytest

from rlhf_marl.evaluation.trained_run import OnlyRecorded, check_agents, open_run, recorded
from rlhf_marl.runs.directory import RunDirectory


def test_recorded_rows_are_those_that_can_be_read(tmp_path):
    row = {"agent": 0, "reward_model": "kind", "iteration": 1, "reward_scaled": 0.5}
    lines = [
        json.dumps(row),
        "{",
        "[1]",
        "[" * 3000,
        json.dumps(row | {"reward_scaled": 1e999}),
        json.dumps({"agent": 1}),
    ]
    run = RunDirectory(tmp_path)
    assert recorded(run) == []
    run.metrics.write_text("\n".join([*lines, json.dumps(row | {"agent": 1})]))  # the last line is torn
    assert recorded(run) == [row]


def test_a_run_without_agents_or_config_leaves_what_was_recorded(tmp_path):
    with pytest.raises(OnlyRecorded, match="so there are no agents;"):
        check_agents(RunDirectory(tmp_path))
    (tmp_path / "dialogues.jsonl").touch()
    with pytest.raises(OnlyRecorded, match=r"`rlhf-marl report .*` shows what was recorded"):
        open_run(tmp_path, "evaluate")
