import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS


def test_step_sizes_fit_the_iterations_that_are_run():
    """α / t reaches the regime's own step after a twentieth of the run, of a short one too."""
    for config in (load_study("configs/study.yaml"), load_study("configs/study.yaml").quick()):
        for regime in ("printed", "working"):
            arms = settings(config, regime, "rate")
            twentieth = arms["constant"].iterations / 20
            assert arms["α / t"].actor_step_size / twentieth == pytest.approx(arms["constant"].actor_step_size)
            assert arms["α / 10t"].actor_step_size == pytest.approx(arms["α / t"].actor_step_size / 10)


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


@pytest.mark.parametrize(
    ("experiment", "arm", "changes"),
    [
        ("fig2", "TD error", {}),
        ("fig8", "N = 3", {"n_agents": 3}),
        ("fig9", "5 K, M", {"critic_steps": 10, "actor_samples": 3}),
        # 90 iterations of K + M - 1 = 4 steps are 360 steps: 30 iterations of 12.
        ("fig9", "5 K, M, equal samples", {"critic_steps": 10, "actor_samples": 3, "iterations": 30}),
        ("offset", "-δ, r + 24", {"signal": "td_q", "reward_shift": 24.5}),
        # α / t with α = 0.02 * 90 / 20 = 0.09, of which a third.
        ("rate", "α / 3t", {"actor_schedule": "inverse", "actor_step_size": 0.03}),
    ],
)
def test_an_arm_changes_what_it_says(experiment, arm, changes):
    base = Setting(iterations=90, critic_steps=2, actor_samples=3, actor_step_size=0.02, reward_shift=0.5)
    assert EXPERIMENTS[experiment].arms[arm](base) == pytest.approx(changes)
