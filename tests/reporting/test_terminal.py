"""Terminal output: warnings, the summary's numbers, and escaped text."""

import pytest

from rlhf_marl.reporting.terminal import Display, counted
from rlhf_marl.training.health import warnings_of

HEALTHY = {
    "agent": 0,
    "reward_model": "kind",
    "reward_scaled": 0.5,
    "actor_skipped": 0,
    "critic_skipped": 0,
    "critic_dead_units": 0.5,
    "critic_value": 1.0,
    "critic_magnitude": 1.0,
    "actor_signal": 0.1,
    "actor_signal_positive": 0.5,
    "critic_projected": 0.0,
    "entropy": 2.0,
    "kl": 4.0,
    "response_tokens": 20.0,
    "controller_fallbacks": 0,
    "tokens_per_second": 9.0,
    "seconds": 1.0,
}


def test_a_healthy_row_warns_of_nothing(tiny_config):
    assert list(warnings_of(HEALTHY, tiny_config)) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"actor_skipped": 1}, "actor_skipped"),
        ({"critic_skipped": 1}, "critic_skipped"),
        ({"critic_dead_units": 1.0}, "dead_critic"),
        ({"critic_value": 0.0, "critic_magnitude": 101.0}, "critic_scale"),
        ({"actor_signal": 0.0, "actor_signal_positive": 0.0}, "no_signal"),
        ({"critic_projected": 1.0}, "projected"),
        ({"entropy": 0.1}, "entropy"),
        ({"kl": 41.0}, "kl"),
        ({"controller_fallbacks": 2}, "fallbacks"),
    ],
)
def test_each_symptom_has_its_warning(tiny_config, change, kind):
    assert [found for found, words in warnings_of(HEALTHY | change, tiny_config) if words] == [kind]


def test_one_sided_signals_are_reported_with_enough_samples(tiny_config):
    many = tiny_config.model_copy(update={"dialogues": 8})
    for positive in (0.0, 1.0):
        row = HEALTHY | {"actor_signal_positive": positive}
        assert list(warnings_of(row, tiny_config)) == []
        assert [kind for kind, _ in warnings_of(row, many)] == ["one_sided_signal"]


def test_each_warning_is_shown_once_per_agent(tiny_config, tmp_path, capsys):
    display = Display(tiny_config, tmp_path)
    collapsed = HEALTHY | {"entropy": 0.1}
    display.iteration(1, [collapsed, collapsed | {"agent": 1}])
    display.iteration(2, [collapsed])
    errors = capsys.readouterr().err
    assert errors.count("warning: agent 0: policy entropy") == 1
    assert errors.count("warning: agent 1: policy entropy") == 1


def test_the_opening_line_counts_in_the_singular_too(tiny_config, tmp_path, capsys):
    Display(tiny_config.model_copy(update={"iterations": 1, "dialogues": 1, "turns": 1}), tmp_path).loading()
    assert "1 update in 1 iteration of 1 dialogue, 1 turn each\n" in capsys.readouterr().err
    assert [counted(0, "turn"), counted(1, "turn"), counted(1024, "turn")] == ["0 turns", "1 turn", "1,024 turns"]


def test_summary_shows_names_as_text(tiny_config, tmp_path, capsys):
    Display(tiny_config, tmp_path / "run").summary([HEALTHY | {"reward_model": "[red]x[/red]"}], [], 1)
    errors = capsys.readouterr().err
    assert "[red]x[/red]" in errors
    assert "+0.500" in errors
    assert "warning" not in errors


def test_summary_shows_early_and_late_answers_to_one_question_as_text(tiny_config, tmp_path, capsys):
    turns = [
        {
            "iteration": iteration,
            "dialogue": iteration,
            "turn": 0,
            "prompt": "[b]how?",
            "responses": [{"text": f"\x1b[31m[red]{word} {agent}"} for agent in range(1)],
            "aggregate": f"{word} together",
            "critic_value": None,
        }
        for iteration, word in ((0, "early"), (6, "late"))
    ]
    Display(tiny_config, tmp_path).summary([HEALTHY], turns, 7)
    errors = capsys.readouterr().err
    for shown in ("[b]how?", "iteration 1", "iteration 7", "[red]early 0", "[red]late 0", "late together"):
        assert shown in errors
    assert "\x1b[31m" not in errors


def test_summary_counts_symptoms_and_names_the_best_checkpoint(tiny_config, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text('{"folder": "iteration_00004", "score": 0.25}')
    rows = [HEALTHY, HEALTHY | {"entropy": 0.1}, HEALTHY | {"entropy": 0.2}]
    Display(tiny_config, tmp_path).summary(rows, [], 3)
    errors = capsys.readouterr().err
    assert "warning: agent 0: policy entropy is below 0.3" in errors
    assert "(in 2 of 3 updates)" in errors
    assert f"best checkpoint: iteration_00004 (reward_scaled +0.250); its adapters: {tmp_path}/best" in errors


def test_validations_are_shown_beside_the_rewards_and_in_the_summary(tiny_config, tmp_path, capsys):
    display = Display(tiny_config, tmp_path)
    rows = [
        {"iteration": i, "questions": 8, "team": team, "agents": [0.5, -1.0], "early_stop": stop}
        for i, team, stop in ((0, 0.25, None), (1, 0.375, None), (2, 0.125, "training ended early"))
    ]
    display.validation(rows[0])
    display.iteration(1, [HEALTHY])
    display.summary([HEALTHY], [], 2, rows)
    errors = capsys.readouterr().err
    assert "after 0 iterations, 8 held-out questions: team +0.25 (agent 0 +0.50, agent 1 -1.00)" in errors
    assert "reward kind +0.50  held-out team +0.25" in errors
    assert "team +0.250 after 0 iterations, best +0.375 after 1, last +0.125 after 2." in errors
    assert "training ended early; to continue: --resume with another --validation.patience" in errors
