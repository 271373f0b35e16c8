"""What the user reads: the warnings, the summary's numbers, and text that cannot format the terminal."""

import pytest

from rlhf_marl.health import warnings_of
from rlhf_marl.progress import Display, first_and_last_fifth

HEALTHY = {
    "agent": 0,
    "reward_model": "kind",
    "reward_scaled": 0.5,
    "actor_skipped": 0,
    "critic_skipped": 0,
    "critic_dead_units": 0.5,
    "critic_value": 1.0,
    "critic_projected": 0.0,
    "entropy": 2.0,
    "kl": 4.0,
    "response_tokens": 20.0,
    "controller_fallbacks": 0,
    "tokens_per_second": 9.0,
}


def test_a_healthy_row_warns_of_nothing(tiny_config):
    assert list(warnings_of(HEALTHY, tiny_config)) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"actor_skipped": 1}, "actor_skipped"),
        ({"critic_skipped": 1}, "critic_skipped"),
        ({"critic_dead_units": 1.0}, "dead_critic"),
        ({"critic_value": -101.0}, "critic_scale"),
        ({"critic_projected": 1.0}, "projected"),
        ({"entropy": 0.1}, "entropy"),
        ({"kl": 41.0}, "kl"),
        ({"controller_fallbacks": 2}, "fallbacks"),
    ],
)
def test_each_symptom_has_its_warning(tiny_config, change, kind):
    assert [found for found, words in warnings_of(HEALTHY | change, tiny_config) if words] == [kind]


def test_each_warning_is_shown_once_per_agent(tiny_config, tmp_path, capsys):
    display = Display(tiny_config, tmp_path)
    collapsed = HEALTHY | {"entropy": 0.1}
    display.iteration(1, [collapsed, collapsed | {"agent": 1}])
    display.iteration(2, [collapsed])
    errors = capsys.readouterr().err
    assert errors.count("warning: agent 0: policy entropy") == 1
    assert errors.count("warning: agent 1: policy entropy") == 1


def test_first_and_last_fifth_of_one_agent():
    rows = [{"agent": i % 2, "reward_scaled": float(i // 2)} for i in range(22)]  # agent 0: 0, 1, ..., 10
    assert first_and_last_fifth(rows, 0) == (0.5, 9.5)
    assert first_and_last_fifth(rows[:2], 1) == (0.0, 0.0)


def test_summary_shows_names_as_text(tiny_config, tmp_path, capsys):
    Display(tiny_config, tmp_path / "run").summary([HEALTHY | {"reward_model": "[red]x[/red]"}], 1)
    errors = capsys.readouterr().err
    assert "[red]x[/red]" in errors
    assert "+0.500" in errors
