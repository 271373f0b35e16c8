import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.config import load_study, points, settings


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


def test_quick_is_smaller():
    config = load_study("configs/study.yaml")
    assert (config.seeds, config.quick().seeds) == (100, 20)
    setting = settings(config.quick(), "printed", "fig2")["TD error"]
    assert setting.iterations == 2000
    assert points(config.quick(), setting)[-1] == 2000


def test_figure_10_is_figure_2():
    assert load_study("configs/study.yaml", ["--experiments", "[fig10, fig2, fig5]"]).experiments == ["fig2", "fig5"]


def test_printed_is_as_printed():
    """Appendix D.1's numbers, read off the page."""
    s = settings(load_study("configs/study.yaml"), "printed", "fig2")["TD error"]
    assert (s.iterations, s.n_agents, s.discount, s.width, s.depth) == (20_000, 2, 0.99, 20, 5)
    assert (s.critic_steps, s.actor_samples, s.gossip_rounds) == (1, 1, 10)
    assert (s.actor_step_size, s.critic_step_size) == (0.005, 0.001)
    assert (s.signal, s.start, s.split) == ("td_q_literal", "restart", "shared")


def test_points_are_evenly_spaced_and_end_with_the_run():
    config = load_study("configs/study.yaml", ["--points", "4"])
    assert points(config, Setting(iterations=10)) == [2, 5, 8, 10]
    assert points(config, Setting(iterations=4)) == [1, 2, 3, 4]


def test_a_run_has_an_iteration_for_each_point():
    config = load_study("configs/study.yaml", ["--points", "7", "--iterations_share", "0.0001"])
    assert {setting.iterations for setting in settings(config, "printed", "fig9").values()} == {7}
