"""The experiments near the best policy, and the regime and control that the study's claims rest on."""

import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.claims import judge
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.experiments import CONTROL
from rlhf_marl.gridworld.study.results import Result
from rlhf_marl.gridworld.study.run import run_setting, run_study
from rlhf_marl.gridworld.study.tables import optimum_table

TINY = ["--seeds", "3", "--points", "4", "--iterations_share", "0.005"]


def test_arms_take_ten_times_the_regimes_steps():
    config = load_study("configs/study.yaml")
    base = settings(config, "working", "fig2")["TD error"]
    ten = 10 * base.iterations * base.steps_per_iteration
    assert ten == 240_000
    sampled = settings(config, "working", "optimum") | settings(config, "working", "losses")
    for name, setting in sampled.items():
        if setting.direction == "sampled":
            assert 0.99 * ten < setting.iterations * setting.steps_per_iteration <= ten, name


def test_they_run_under_their_regime_alone():
    config = load_study("configs/study.yaml", ["--experiments", "[fig2, optimum, losses]"])
    assert config.runs("working") == ["fig2", "optimum", "losses"]
    assert config.runs("printed") == ["fig2"]
    with pytest.raises(UsageError, match=r"none of optimum \(regime working\) runs under mine"):
        load_study("configs/study.yaml", ["--experiments", "[optimum]", "--regimes", "{mine: {}}"])


def test_a_share_of_the_way_by_hand():
    """Two seeds whose ways are 4 and 6: 3.8 and 5.4 of them are 9.2 of 10 together."""
    arms = {name: made_up([-8 + 3.8, -8 + 5.4], [-4.0, -2.0]) for name in ("larger K and M", CONTROL)}
    arms["actors gossiped"] = made_up([-8 + 3.2, -8 + 4.8], [-4.0, -2.0])
    (row, *_) = [line for line in optimum_table({"r": {"optimum": arms}}) if "larger K" in line]
    assert row.startswith("| r | larger K and M | 0.920 [")
    assert "| 0.40 [" in row
    found = {v.statement: v for v in judge({"r": {"optimum": arms}})}
    assert found["ten times the steps: larger K and M reach 0.9 of the way from random to best"].mean == pytest.approx(
        0.02
    )
    assert found[
        "ten times the steps: with gossiped actors they reach 0.9 of the way from random to best"
    ].mean == pytest.approx(-0.1)


def made_up(value, optimum):
    arrays = {"value": np.array(value)[:, None].repeat(5, 1), "optimum": np.array(optimum), "random": np.full(2, -8.0)}
    return Result(Setting(), arrays, 1.0)


def test_exact_arms_run_through_the_study(tmp_path):
    small = [
        "--regimes",
        "{working: {width: 4, depth: 2, signal: td_v, start: warm, discount: 0.9, iterations: 400}, printed: {}}",
    ]
    config = load_study("configs/study.yaml", [*TINY, "--experiments", "[losses]", *small])
    lines = []
    run_study(config, tmp_path / "out", lines.append)
    found = (tmp_path / "out" / "claims.md").read_text()
    assert "| working | exact direction, actors gossiped |" in found
    assert "| source | claim | working |\n" in found  # no column for a regime that has none of it
    assert not any("exact direction" in line and "same sign" in line for line in lines)  # it has no signals


def test_the_control_does_not_learn():
    config = load_study("configs/study.yaml", TINY)
    control = run_setting(settings(config, "working", "fig2")[CONTROL], config)
    assert control.setting.actor_step_size == 1e-12
    assert np.ptp(control.arrays["value"], axis=1).max() < 1e-6


def test_the_charitable_regime_keeps_the_printed_numbers():
    config = load_study("configs/study.yaml")
    printed, charitable = (settings(config, regime, "fig2")["TD error"] for regime in ("printed", "charitable"))
    changed = {name for name, value in printed if value != getattr(charitable, name)}
    assert changed == {
        "signal", "start", "reward_shift", "reward_scale", "actor_output_scale", "critic_output_scale"
    }  # fmt: skip
    assert charitable.signal == "td_q"
