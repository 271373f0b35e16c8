"""States, last rewards and verdicts of runs in a folder."""

import json
import re

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import locked
from rlhf_marl.reporting.run_list import list_runs
from tests.reporting.runs import write_run


def test_a_run_of_every_state(tmp_path):
    """Rewards are 0.1 times the update; an iteration has three updates."""
    (write_run(tmp_path / "a" / "finished") / "best").mkdir()
    write_run(tmp_path / "interrupted", evaluated=False)
    (write_run(tmp_path / "empty", evaluated=False) / "metrics.jsonl").write_text("")
    write_run(tmp_path / "running", evaluated=False)
    with locked(tmp_path / "running", "test"):
        found = {run.path.removeprefix(f"{tmp_path}/"): run for run in list_runs(tmp_path)}
    assert {name: run.state for name, run in found.items()} == {
        **{"a/finished": "finished", "interrupted": "interrupted", "empty": "empty", "running": "running"},
    }
    finished = found["a/finished"]
    assert (finished.iterations, finished.of) == (6, 6)
    assert finished.reward == pytest.approx((1.5 + 1.6 + 1.7) / 3)
    assert finished.verdicts == ["better on its own reward, worse on held-out judges: likely hacked"] * 3
    assert found["interrupted"].verdicts == []
    assert found["empty"].reward is None


def test_a_run_that_ended_early_is_finished(tmp_path):
    """Six of fifty iterations; a sentence of the validation says why, if it is of the last one."""
    run = write_run(tmp_path / "run", evaluated=False)
    (run / "best").mkdir()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"^iterations: \d+", "iterations: 50", config, flags=re.MULTILINE))
    states = []
    for row in ({"iteration": 5, "early_stop": None}, {"iteration": 6, "early_stop": "enough"}):
        (run / "validation.jsonl").write_text(json.dumps(row) + "\n")
        states += [found.state for found in list_runs(tmp_path)]
    (run / "validation.jsonl").write_text("damaged\n")
    states += [found.state for found in list_runs(tmp_path)]
    assert states == ["interrupted", "finished", "interrupted"]


def test_a_run_whose_last_iteration_has_no_checkpoint_is_not_finished(tmp_path):
    """It was resumed, and killed before its results were written; those that are there are of before."""
    run = write_run(tmp_path / "run", evaluated=False)
    (run / "best").mkdir()
    states = []
    for iteration in (4, 6):
        (run / "checkpoints" / f"iteration_{iteration:05d}").mkdir(parents=True)
        states += [found.state for found in list_runs(tmp_path)]
    assert states == ["interrupted", "finished"]


def test_damaged_files_do_not_stop_the_list(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    (run / "evaluation.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('nonsense\n{"iteration": 9}\n{"iteration": 8, "reward_sc')
    (found,) = list_runs(tmp_path)
    assert (found.state, found.iterations, found.of, found.verdicts) == ("interrupted", 6, None, [])


def test_only_the_end_of_a_long_log_is_read(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("rlhf_marl.reporting.run_list._TAIL", 2000)
    rows = [json.dumps({"iteration": i, "reward_scaled": float(i)}) for i in range(1000)]
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert list_runs(tmp_path)[0].reward == 999.0


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match=r"^runs: .*nope' is not a folder$"):
        list_runs(tmp_path / "nope")
