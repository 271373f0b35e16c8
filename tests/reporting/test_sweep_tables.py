"""A sweep in the terminal: the numbers, the directions, and 80 columns."""

import io

from rich.console import Console

from rlhf_marl.reporting.sweep_tables import Cell, cell, failures, show_sweep
from tests.reporting.sweeps import numbers, sweep_numbers


def printed(sweep, width=80):
    console = Console(file=io.StringIO(), width=width)
    show_sweep(sweep, console)
    return console.file.getvalue()


def test_cells():
    assert cell(None) == Cell("–", "", "")
    assert cell(numbers(1.0)) == Cell("+1.00", "[+0.75, +1.25]", "up")
    assert cell(numbers(-1.0)) == Cell("-1.00", "[-1.25, -0.75]", "down")
    assert cell(numbers(0.1)) == Cell("+0.10", "[-0.15, +0.35]", "")
    assert cell(numbers(1.0, None)) == Cell("+1.00", "", "")
    assert cell(numbers(1.0), toned=False).tone == ""


def test_arms_differences_and_verdicts_are_printed_within_80_columns():
    text = printed(sweep_numbers())
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    assert "rounds=20 (3 seeds)" in words
    assert "agent 0: vowels +1.50 -1.00 +0.75 [+1.25, +1.75] [-1.25, -0.75] [+0.50, +1.00]" in words
    assert "team: 2 × no clear change" in words
    assert "minus rounds=0, paired by seed" in words
    assert "rounds=20: team +1.00 – 3 [+0.75, +1.25]" in words


def test_the_failed_runs_are_listed():
    sweep = sweep_numbers()
    sweep["arms"][1]["runs"][2] |= {"state": "failed", "reason": "the service is down"}
    assert failures(sweep) == [("rounds=20/2", "the service is down")]
    assert "rounds=20 (2 seeds)" in printed(sweep)


def test_hostile_names_are_inert():
    text = printed(sweep_numbers(model="\x1b[31mred[bold]x\u202e"), width=200)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[31mred[bold]x\\u202e" in text
