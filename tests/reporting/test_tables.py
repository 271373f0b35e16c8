"""Cells and rows of tables, by hand."""

from rlhf_marl.reporting.tables import cell, compared, cross_metric, cross_rewards, differences, formatted

METRIC = {"base": 1.0, "trained": 1.5, "difference": 0.5, "low": 0.25, "high": 0.75}
CROSS = {
    "judges": [{"name": "kind", "trained_agents": [0]}, {"name": "held", "trained_agents": []}],
    "rows": ["agent 0", "team"],
    "base": [[0.0, None], [0.0, 0.0]],
    "trained": [[0.5, None], [-0.5, 0.0]],
    "difference": [[0.5, None], [-0.5, 0.0]],
    "low": [[0.25, None], [-0.75, 0.0]],
    "high": [[0.75, None], [-0.25, 0.0]],
}


def test_config_differences_by_hand():
    found = differences([{"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}}])
    assert found == [("a.c.1", ["2", "3"])]


def test_cells_by_hand():
    metric = {"base": 1.0, "trained": 1.5, "difference": 0.5, "low": 0.25, "high": 0.75}
    assert cell(metric, True) == {"value": "1.00 → 1.50", "interval": "[+0.25, +0.75]", "tone": "up"}
    assert cell(metric)["tone"] == "clear"
    assert cell(None) == {"value": "–", "interval": "", "tone": ""}
    assert cell({"rate": 0.5, "low": None, "high": None}) == {"value": "0.50", "interval": "", "tone": ""}


def test_one_format_for_report_and_terminal():
    assert formatted(METRIC) == ("1.00 → 1.50", "[0.25, 0.75]")
    assert formatted(METRIC, sign="+") == ("1.00 → 1.50", "[+0.25, +0.75]")
    assert formatted(METRIC, difference=True) == ("+0.50", "[0.25, 0.75]")
    assert formatted({"mean": 0.5, "low": 0.25, "high": 0.75}, sign="+") == ("0.50", "[0.25, 0.75]")
    assert formatted(METRIC | {"low": 0.5, "high": 0.5}) == ("1.00 → 1.50", "")
    assert formatted(None) == ("–", "")


def test_cross_rewards_mark_the_agents_own_judge_and_those_held_out():
    found = cross_rewards(CROSS)
    assert found["judges"] == [("kind", False), ("held", True)]
    own = {"value": "+0.50", "interval": "[+0.25, +0.75]", "tone": "up", "own": "*"}
    missing = {"value": "–", "interval": "", "tone": "", "own": ""}
    assert found["rows"][0] == ("agent 0", [own, missing])
    assert [cell["tone"] for cell in found["rows"][1][1]] == ["down", ""]
    assert cross_metric(CROSS, 1, 0) == {"base": 0.0, "trained": -0.5, "difference": -0.5, "low": -0.75, "high": -0.25}


def test_compared_runs_name_judges_and_metrics():
    found = compared(
        {"agents": [{"kind": METRIC, "length": None}], "team": {"kind": METRIC, "length": METRIC}, "warnings": []}
    )
    assert found["heads"] == ["agent 0", "team"]
    assert [label for label, _ in found["rows"]] == ["judge kind", "answer length in tokens"]
    assert [cell["value"] for cell in found["rows"][1][1]] == ["–", "+0.50"]
    assert [cells[1]["tone"] for _, cells in found["rows"]] == ["up", "clear"]
