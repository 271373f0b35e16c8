"""The study end to end with a few seeds."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import locked
from rlhf_marl.gridworld.study import results
from rlhf_marl.gridworld.study.claims import CLAIMS, outcome
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.run import run_setting, run_study
from tests.gridworld.study.conftest import FEW, TINY

ONE = load_study("configs/study.yaml", [*TINY, "--experiments", "[fig2]", "--regimes", "{printed: {}}"])
SMALL = ["--regimes", "{printed: {width: 4, depth: 2}}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of the finished study ONE."""
    return run_study(ONE, tmp_path_factory.mktemp("study"), lambda line: None)


def test_end_to_end_and_again_without_running(study, tmp_path, capsys):
    study(*FEW, *SMALL, "--out", "out")
    printed = capsys.readouterr()
    assert "| Figure 2, 10 | with the TD error agents learn" in printed.out
    assert "14 settings of 3 seeds, 14 to run" in printed.err
    assert "14/14 printed rate: α / 10t" in printed.err
    assert "warning: printed (fig2: TD error;" in printed.err
    experiments = json.loads((tmp_path / "out" / "results.json").read_text())["experiments"]["printed"]
    for name in ("fig2", "slow_graph", "centralised", "rate"):
        assert (tmp_path / "out" / "figures" / f"printed_{name}.svg").stat().st_size > 1000
        assert (tmp_path / "out" / "figures" / f"printed_{name}.png").stat().st_size > 1000
    figures = {name: (tmp_path / "out" / "figures" / f"printed_{name}.svg").read_text() for name in ("fig2", "rate")}
    assert "exact team reward per step" in figures["fig2"]
    assert "α / 10t: t^" in figures["rate"]
    arm = experiments["fig2"]["TD error"]
    assert len(arm["value"]["mean"]) == len(arm["reward"]["low"]) == len(arm["iterations"]) == 4
    levels = arm["baselines"]
    assert levels["random"] < levels["constant"] < levels["optimum"]
    np.testing.assert_allclose(arm["gap"]["mean"], levels["optimum"] - np.array(arm["value"]["mean"]), atol=1e-4)
    assert len(arm["gap"]["power_of_1_over_t"]) == 3
    assert len(experiments["slow_graph"]["10 rounds"]["consensus"]["mean"]) == 31
    assert 0 < arm["eta"][0] < 0.5 < arm["spectral_gap"][0] < 1
    assert arm["critics"].keys() == {"disagreement_before", "disagreement_after"}
    assert "distance" in experiments["centralised"]["decentralised"]["critics"]
    assert arm["diagnostics"]["critic_error"][0] > 0
    assert any("nearly all actor signals have the same sign" in words for words in arm["warnings"])

    before = (tmp_path / "out" / "figures" / "printed_fig2.svg").read_bytes()
    config = load_study("configs/study.yaml", [*FEW, *SMALL])
    setting = settings(config, "printed", "fig2")["Q value"]
    name = results.fingerprint(setting, config.seed, config.seeds, config.points)
    victim = tmp_path / "out" / "settings" / f"{name}.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100])  # torn: run again, to the same numbers
    study(
        *FEW,
        *SMALL,
        "--experiments",
        "[fig2]",
        "--regimes.turned",
        "{width: 4, depth: 2, signal: td_q}",
        "--out",
        "out",
    )
    printed = capsys.readouterr()
    assert "5 settings of 3 seeds, 3 to run" in printed.err  # both regimes have the Q value's
    assert "| source | claim | printed | turned |" in printed.out
    assert (tmp_path / "out" / "figures" / "printed_fig2.svg").read_bytes() == before


def test_foreign_folders_and_other_versions_are_refused(study, finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        study(*FEW, "--out", "full")
    assert "--out: 'full' holds something else than a study; choose another folder" in capsys.readouterr().err
    shutil.copytree(finished, tmp_path / "old")
    other = ONE.model_copy(update={"points": 3})  # so that no file of the folder is wanted
    monkeypatch.setattr(results, "VERSION", 4)
    with pytest.raises(UsageError, match=r"old/results.json holds results of version 3, this is 4; choose another"):
        run_study(other, tmp_path / "old", lambda line: None)
    (tmp_path / "old" / "results.json").write_text("torn")
    with pytest.raises(UsageError, match=r"safetensors holds results of version 3, this is 4; choose another folder"):
        run_study(other, tmp_path / "old", lambda line: None)


def test_figures_of_an_earlier_run_do_not_stay(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "printed_fig2.png").is_file()
    other = load_study("configs/study.yaml", [*TINY, "--experiments", "[critic]", "--regimes", "{printed: {}}"])
    run_study(other, tmp_path / "out", lambda line: None)
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir()) == [
        "printed_critic.png",
        "printed_critic.svg",
    ]
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert summary["experiments"]["printed"].keys() == {"critic"}


def test_missing_extras_are_told_first(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rlhf_marl.cli.commands.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(SystemExit):
        study(*FEW, "--out", "out")
    reason = "needs numba and matplotlib: pip install '.[study]' in the toolkit's folder"
    assert capsys.readouterr().err == f"error: study: {reason}\n"
    assert not (tmp_path / "out").exists()


def test_more_than_two_agents_in_a_regime(tmp_path):
    """Claims against the start and against constant actions are judged too, and the table of signals is there."""
    regimes = ["--regimes", "{three: {n_agents: 3, width: 4, depth: 2}}"]
    config = load_study("configs/study.yaml", [*TINY, "--experiments", "[fig2, signals]", *regimes])
    run_study(config, tmp_path / "out", lambda line: None)
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    statements = {claim["statement"] for claim in summary["claims"]}
    assert {claim.statement for claim in CLAIMS if claim.experiment == "fig2"} <= statements
    levels = summary["experiments"]["three"]["fig2"]["TD error"]["baselines"]
    assert levels["random"] < levels["constant"] < levels["optimum"] < levels["bound"]
    assert abs(levels["start"] - levels["random"]) < 3
    assert "the best constant joint action gets" in (tmp_path / "out" / "claims.md").read_text()


def test_two_studies_in_one_folder(study, tmp_path, capsys):
    (tmp_path / "out" / "settings").mkdir(parents=True)
    with locked(tmp_path / "out", "test"), pytest.raises(SystemExit):
        study(*TINY, "--experiments", "[fig5]", "--regimes", "{printed: {}}", "--out", "out")
    assert "error: --out: 'out' is being written by another process" in capsys.readouterr().err


def test_a_setting_measures_the_same_alone():
    config = load_study("configs/study.yaml", TINY)
    setting = settings(config, "working", "fig2")["TD error"].model_copy(update={"iterations": 8})
    few = run_setting(setting, config)
    more = run_setting(setting, config.model_copy(update={"seeds": 5}))
    np.testing.assert_array_equal(few.arrays["value"], more.arrays["value"][:3])
    assert outcome(few).shape == (3,)
    assert replace(few, seconds=0.0).setting == setting
