"""The study end to end with a few seeds, and its verdicts on made-up numbers."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from rlhf_marl.cli import main
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.files.atomic import locked
from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study import results
from rlhf_marl.gridworld.study.claims import CLAIMS, judge, outcome
from rlhf_marl.gridworld.study.config import load_study, points, settings
from rlhf_marl.gridworld.study.experiments import CONTROL, EXPERIMENTS
from rlhf_marl.gridworld.study.health import symptoms, warnings_in_words
from rlhf_marl.gridworld.study.measure import _start, baselines, exact_values, interval, paired
from rlhf_marl.gridworld.study.results import Result
from rlhf_marl.gridworld.study.run import run_setting, run_study
from rlhf_marl.gridworld.training import train

TINY = ["--seeds", "3", "--points", "4", "--iterations_share", "0.005"]
ONE = load_study("configs/study.yaml", [*TINY, "--experiments", "[fig2]", "--regimes", "{printed: {}}"])
FEW = [*TINY, "--experiments", "[fig2, slow_graph, centralised, rate]"]
SMALL = ["--regimes", "{printed: {width: 4, depth: 2}}"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs `rlhf-marl study` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhf-marl", "study", "configs/study.yaml", *arguments])
        main()

    return run


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiments", "[fig3]"], "experiments: 'fig3' is not an experiment; choose fig2, fig5"),
        (["--seeds", "1"], "seeds: 1 given; input should be greater than or equal to 2"),
        (["--regimes.printed.n_agents", "70"], "regimes.printed: n_agents: 70 given; input should be less than"),
        (
            ["--regimes.charitable.signal", "td"],
            "regimes.charitable: signal: 'td' is not allowed; choose 'td_q_literal'",
        ),
        (["--regimes.working.gossip", "3"], "regimes.working: gossip: unknown key"),
        (
            ["--regimes.working.critic_steps", "null"],
            "regimes.working: critic_steps: None given; input should be a valid",
        ),
        (
            ["--regimes.printed.graph", "random", "--regimes.printed.edge_probability", "0.0"],
            "study: regimes.printed (fig2: TD error): topology: edge_probability: 0.0 gave no connected graph of 2",
        ),
        (
            ["--regimes.printed", "{matrix: given, weights: [[0.5, 0.5], [0.5, 0.4]]}"],
            "regimes.printed (fig2: TD error): topology: matrix: not doubly stochastic: row 1 sums to 0.9",
        ),
        (
            ["--regimes.printed", "{matrix: given, weights: [[0.5, 0.5], [0.5, 0.5]]}"],
            "regimes.printed (fig8: N = 3): topology: weights: 3 rows of 3 numbers are needed for 3 agents",
        ),
        (["--sedes", "3"], "sedes: unknown key (value 3); did you mean 'seeds'?"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(study, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        study(*arguments, "--out", "out")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_foreign_folders_and_other_versions_are_refused(study, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit):
        study(*FEW, "--out", "full")
    assert "--out: 'full' holds something else than a study; choose another folder" in capsys.readouterr().err
    run_study(ONE, tmp_path / "old", lambda line: None)
    other = ONE.model_copy(update={"points": 3})  # so that no file of the folder is wanted
    monkeypatch.setattr(results, "VERSION", 4)
    with pytest.raises(UsageError, match=r"old/results.json holds results of version 3, this is 4; choose another"):
        run_study(other, tmp_path / "old", lambda line: None)
    (tmp_path / "old" / "results.json").write_text("torn")
    with pytest.raises(UsageError, match=r"safetensors holds results of version 3, this is 4; choose another folder"):
        run_study(other, tmp_path / "old", lambda line: None)


def test_figures_of_an_earlier_run_do_not_stay(tmp_path):
    run_study(ONE, tmp_path / "out", lambda line: None)
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
    assert capsys.readouterr().err == "error: study: needs numba and matplotlib: pip install 'rlhf-marl[study]'\n"
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


def test_a_flipped_bit_is_told_and_a_full_disk_stops(tmp_path, caplog, monkeypatch):
    setting = settings(load_study("configs/study.yaml", TINY), "printed", "fig2")["TD error"]
    file = tmp_path / "settings" / "x.safetensors"
    results.save(file, Result(setting, {"value": np.arange(6.0).reshape(2, 3)}, 1.5))
    assert np.array_equal(results.load(file, setting).arrays["value"], [[0, 1, 2], [3, 4, 5]])
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert results.load(file, setting) is None
    assert "x.safetensors is damaged (its numbers are not those that were written); its setting is run" in caplog.text

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_bytes", full)
    with pytest.raises(RunStopped, match="No space left on device; make room and start the same study again"):
        results.save(file, Result(setting, {}, 1.5))


def test_two_studies_in_one_folder(study, tmp_path, capsys):
    (tmp_path / "out" / "settings").mkdir(parents=True)
    with locked(tmp_path / "out", "test"), pytest.raises(SystemExit):
        study(*TINY, "--experiments", "[fig5]", "--regimes", "{printed: {}}", "--out", "out")
    assert "error: --out: 'out' is being written by another process" in capsys.readouterr().err


def test_quick_is_smaller():
    config = load_study("configs/study.yaml")
    assert (config.seeds, config.quick().seeds) == (100, 20)
    setting = settings(config.quick(), "printed", "fig2")["TD error"]
    assert setting.iterations == 2000
    assert points(config.quick(), setting)[-1] == 2000


def test_step_sizes_fit_the_iterations_that_are_run():
    """α / t reaches the regime's own step after a twentieth of the run, of a short one too."""
    for config in (load_study("configs/study.yaml"), load_study("configs/study.yaml").quick()):
        for regime in ("printed", "working"):
            arms = settings(config, regime, "rate")
            twentieth = arms["constant"].iterations / 20
            assert arms["α / t"].actor_step_size / twentieth == pytest.approx(arms["constant"].actor_step_size)
            assert arms["α / 10t"].actor_step_size == pytest.approx(arms["α / t"].actor_step_size / 10)


def test_figure_10_is_figure_2():
    assert load_study("configs/study.yaml", ["--experiments", "[fig10, fig2, fig5]"]).experiments == ["fig2", "fig5"]


def test_arms_are_relative_to_the_regime():
    """Five times the regime's M, and at equal samples no more steps of the environment than the regime's."""
    config = load_study("configs/study.yaml")
    arms = settings(config, "working", "fig9")
    base = arms["K, M"]
    assert arms["K, 5 M"].actor_samples == 5 * base.actor_samples
    assert arms["5 K, M"].critic_steps == 5 * base.critic_steps
    for name in ("K, 5 M, equal samples", "5 K, M, equal samples"):
        steps = arms[name].iterations * arms[name].steps_per_iteration
        assert 0.97 < steps / (base.iterations * base.steps_per_iteration) <= 1


def test_printed_is_as_printed():
    """Appendix D.1's numbers, read off the page."""
    s = settings(load_study("configs/study.yaml"), "printed", "fig2")["TD error"]
    assert (s.iterations, s.n_agents, s.discount, s.width, s.depth) == (20_000, 2, 0.99, 20, 5)
    assert (s.critic_steps, s.actor_samples, s.gossip_rounds) == (1, 1, 10)
    assert (s.actor_step_size, s.critic_step_size) == (0.005, 0.001)
    assert (s.signal, s.start, s.split) == ("td_q_literal", "restart", "shared")


def test_every_claim_names_arms_that_exist():
    config = load_study("configs/study.yaml", TINY)
    for experiment in EXPERIMENTS:
        arms = settings(config, EXPERIMENTS[experiment].regime or "printed", experiment)
        fake = {label: made_up(setting, np.zeros((3, 5))) for label, setting in arms.items()}
        assert judge({"printed": {experiment: fake}})
    assert {claim.experiment for claim in CLAIMS} == set(EXPERIMENTS)


def made_up(setting, value):
    seeds, n_points = value.shape
    arrays = {
        "value": value,
        "power": np.tile(np.eye(setting.n_agents), (seeds, 1, 1)),
        "points": np.arange(1, n_points + 1) * 100.0,
        "eta": np.full(seeds, 0.1),
    }
    baseline = {"random": -8.0, "start": -8.0, "constant": -7.0, "optimum": -2.0, "bound": -1.5}
    arrays |= {"reward": value, **{name: np.full(seeds, level) for name, level in baseline.items()}}
    for name in ("skipped", "dead", "dead_actors"):
        arrays[name] = np.zeros(value.shape)
    for name in ("positive", "entropy", "critic_value"):
        arrays[name] = np.full(value.shape, 0.5)
    return Result(setting, arrays | {"consensus": np.full((seeds, 31), 0.01)}, 1.0)


def verdicts(experiment, **arms):
    return {v.statement: v for v in judge({"r": {experiment: arms}})}


def test_verdicts_on_made_up_curves():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (50, 1))
    up = made_up(Setting(), -8 + noise + np.linspace(0, 2, 10))
    flat = made_up(Setting(), -8 + noise + np.zeros(10))
    found = verdicts("fig2", **{"TD error": up, "Q value": flat, CONTROL: flat})
    assert found["with the TD error agents learn: above the control's"].verdict == "holds"
    assert found["with the TD error agents learn: above the control's"].mean == pytest.approx(17 / 9, abs=0.05)
    assert found["the TD error beats the Q value"].verdict == "holds"
    assert found["with the Q value they do not: below the control's"].verdict == "not tested"  # equal to the control
    close = made_up(Setting(), flat.arrays["value"] + rng.normal(0, 0.01, (50, 1)))
    narrow = verdicts("fig6", **{"m = 10": flat, "m = 20": close, "m = 40": up})
    assert narrow["width matters little: m = 20 against 10"].verdict == "holds"
    assert narrow["width matters little: m = 40 against 20"].verdict == "does not hold"


def test_rate_of_a_made_up_gap():
    """A gap that falls as t^-1/2 is measured as a power of one half, and is not as fast as 1/t."""
    t = np.arange(1, 21) * 100.0
    gap = (5 + np.random.default_rng(0).normal(0, 0.5, (40, 1))) * t**-0.5
    result = made_up(Setting(), -2 - gap)
    found = verdicts("rate", **dict.fromkeys(("constant", "α / t", "α / 3t", "α / 10t"), result))
    falls = found["with α/t the gap J* - J falls"]
    assert falls.mean == pytest.approx(0.5, abs=1e-6)
    assert falls.verdict == "holds"
    assert found["... at least as fast as 1/t, step sizes α / 10t"].verdict == "does not hold"


def test_interval_by_hand():
    """Of 1, 2, 3: mean 2, half width t(0.975, 2) / sqrt(3) = 4.30265 / 1.73205."""
    assert interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2, 2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_paired_curves_leave_the_landmarks_out():
    """Two seeds that differ in nothing but how good random policies are: no interval is left, and the mean is kept."""
    random = np.array([-9.0, -3.0])
    found = paired(random[:, None] + np.array([[1.0, 2.0]]), {"random": random})
    assert found.tolist() == [[-5, -4], [-5, -4]]


def test_the_start_of_more_agents_is_sampled(monkeypatch):
    """The same rollout for two agents, against exact values."""
    exact = baselines(Setting(width=6, depth=1), 0, 4)["start"]
    monkeypatch.setattr("rlhf_marl.gridworld.study.measure._EXACT", ())
    _start.cache_clear()
    sampled = baselines(Setting(width=6, depth=1), 0, 4)["start"]
    _start.cache_clear()
    np.testing.assert_allclose(sampled, exact, atol=1.0)
    assert (sampled != exact).all()


def test_warnings_name_the_arms():
    result = made_up(Setting(), np.zeros((3, 5)))
    assert list(symptoms(result)) == []
    result.arrays["positive"][:] = 0.999
    result.arrays["dead_actors"][:, -1] = 0.5
    result.arrays["skipped"][0, 2] = 1
    assert [kind for kind, _ in symptoms(result)] == ["skipped", "dead_actors", "one_sided"]
    (first, *_) = warnings_in_words({"r": {"fig6": {f"m = {m}": result for m in range(5)}}})
    assert first.startswith("r (fig6: m = 0; fig6: m = 1; fig6: m = 2 and 2 more): steps that were not finite")


def test_exact_values_are_what_the_environment_pays():
    """Sampled reward of frozen policies (step size 0) against their exact value, over many steps."""
    setting = Setting(actor_step_size=0.0, iterations=40_000, width=8, depth=1, actor_output_scale=0.2)
    draws = draw_all(setting, 0, range(4))
    history = train(setting, 0, range(4), [40_000], draws=draws)
    exact = exact_values(draws.landmarks, history.policies[0])
    np.testing.assert_allclose(history.reward[:, 0], exact, atol=0.15)


def test_a_setting_measures_the_same_alone():
    config = load_study("configs/study.yaml", TINY)
    setting = settings(config, "working", "fig2")["TD error"].model_copy(update={"iterations": 8})
    few = run_setting(setting, config)
    more = run_setting(setting, config.model_copy(update={"seeds": 5}))
    np.testing.assert_array_equal(few.arrays["value"], more.arrays["value"][:3])
    assert outcome(few).shape == (3,)
    assert replace(few, seconds=0.0).setting == setting
