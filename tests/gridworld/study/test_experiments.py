import pytest

from rlhf_marl.gridworld.study.config import load_study, settings


def test_step_sizes_fit_the_iterations_that_are_run():
    """α / t reaches the regime's own step after a twentieth of the run, of a short one too."""
    for config in (load_study("configs/study.yaml"), load_study("configs/study.yaml").quick()):
        for regime in ("literal", "working"):
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
