"""Each warning from a literal row, and none from a healthy one."""

import pytest

from rlhf_marl.config import check_config
from rlhf_marl.training.health import warnings_of

HEALTHY = {
    "actor_skipped": 0,
    "critic_skipped": 0,
    "critic_dead_units": 0.5,
    "critic_value": -3.0,
    "critic_magnitude": 4.0,
    "critic_projected": 0.0,
    "actor_signal": 0.1,
    "actor_signal_positive": 0.5,
    "entropy": 2.0,
    "kl": 3.0,
    "response_tokens": 6.0,
    "controller_fallbacks": 1,
}


@pytest.fixture
def config(quick_content):
    return check_config(quick_content | {"dialogues": 8}, "c")


def kinds(row, config):
    return [kind for kind, _ in warnings_of(row, config)]


def test_a_healthy_row_gives_no_warning(config):
    assert kinds(HEALTHY, config) == []


@pytest.mark.parametrize(
    ("change", "kind", "advice"),
    [
        ({"actor_skipped": 1}, "actor_skipped", "the actor step was skipped"),
        ({"critic_skipped": 2}, "critic_skipped", "a critic step was not finite"),
        ({"critic_dead_units": 0.96}, "dead_critic", "lower critic.step_size"),
        ({"critic_magnitude": 120.4}, "critic_scale", "the mean |critic value| is 120: rescale the reward card"),
        ({"critic_projected": 1.0}, "projected", "a larger critic.radius may help"),
        ({"actor_signal_positive": 1.0}, "one_sided_signal", "the card's offset"),
        ({"actor_signal_positive": 0.0}, "one_sided_signal", "the card's offset"),
        ({"actor_signal_positive": 0.0, "actor_signal": 0.0}, "no_signal", "nothing is learned"),
        ({"entropy": 0.29}, "entropy", "policy has collapsed"),
        ({"kl": 12.1}, "kl", "likely reward hacking"),
        ({"controller_fallbacks": 8}, "fallbacks", "no usable output for a whole batch"),
    ],
)
def test_each_symptom_has_its_warning(config, change, kind, advice):
    ((found, words),) = warnings_of(HEALTHY | change, config)
    assert found == kind
    assert advice in words


@pytest.mark.parametrize(
    "change",
    [
        {"critic_dead_units": 0.95},
        {"critic_magnitude": 100.0},
        {"critic_projected": 0.9},
        {"actor_signal_positive": 0.01},
        {"entropy": 0.3},
        {"kl": 12.0},  # 2 nats a token
        {"controller_fallbacks": 7},
    ],
)
def test_values_at_the_threshold_give_no_warning(config, change):
    assert kinds(HEALTHY | change, config) == []


def test_few_samples_share_a_sign_by_chance(config, quick_content):
    row = HEALTHY | {"actor_signal_positive": 1.0}
    few = check_config(quick_content | {"dialogues": 7}, "c")
    assert kinds(row, few) == []
    two_turns = {"dialogues": 4, "turns": 2, "actor": {"turns_per_update": 2}}
    assert kinds(row, check_config(quick_content | two_turns, "c")) == ["one_sided_signal"]


def test_a_team_may_leave_out_metrics_that_it_does_not_have(config):
    always = {key: HEALTHY[key] for key in ("response_tokens", "controller_fallbacks")}
    assert kinds(always, config) == []


def test_several_symptoms_are_all_reported(config):
    assert kinds(HEALTHY | {"actor_skipped": 1, "entropy": 0.0}, config) == ["actor_skipped", "entropy"]
