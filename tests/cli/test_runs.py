"""`rlhf-marl runs` as text and JSON."""

import json

from tests.reporting.runs import write_run


def test_a_line_per_run_and_verdict(run, tmp_path):
    (write_run(tmp_path / "runs" / "a") / "best").mkdir()
    code, printed, _ = run("runs")
    assert code == 0
    first, *verdicts = printed.splitlines()
    assert first == "runs/a  finished     6/6  reward +1.60"
    assert verdicts[2] == "    agent 2: better on its own reward, worse on held-out judges: likely hacked"
    assert json.loads(run("runs", "--json")[1])[0]["state"] == "finished"


def test_hostile_names_are_inert_and_no_runs_are_no_mistake(run, tmp_path):
    write_run(tmp_path / "runs" / "\x1b[31mred", evaluated=False)
    assert "\x1b" not in run("runs")[1]
    (tmp_path / "none").mkdir()
    assert run("runs", "none") == (0, "", "none: no runs; start one with rlhf-marl train\n")
    assert run("runs", "gone")[0] == 2
