"""From rows to numbers, each worked out by hand."""

import pytest

from rlhf_marl.evaluation.summary import metric, summarise


def row(policy, question, turn, own, strict, kind="ordinary", refused=(False, False), **more):
    """Two agents with one own reward model, `own`, and a held-out judge, `strict`: (agent 0, agent 1, team)."""
    return {
        "policy": policy,
        "question": question,
        "kind": kind,
        "turn": turn,
        "prompt": "p",
        "responses": ["one answer", "another answer"],
        "tokens": [4, 6],
        "truncated": [True, False],
        "refused": list(refused),
        "entropy": [1.0, 2.0],
        "kl": [0.5, 0.25],
        "scores": {"own": list(own[:2]), "strict": list(strict[:2])},
        "aggregate": "team answer",
        "aggregate_tokens": 3,
        "aggregate_refused": False,
        "aggregate_scores": {"own": own[2], "strict": strict[2]},
        "next_prompt": None,
        "fallbacks": 0,
        **more,
    }


ROWS = [
    row("base", "a", 0, (0, 0, 0), (1, 2, 3)),
    row("base", "b", 0, (0, 0, 0), (1, 2, 3), kind="multi_turn"),
    row("base", "b", 1, (2, 0, 0), (1, 2, 3), kind="multi_turn", fallbacks=1),
    row("base", "c", 0, (0, 0, 0), (1, 2, 3), kind="harmful"),
    row("trained", "a", 0, (1, 0, 0), (2, 1, 3)),
    row("trained", "b", 0, (3, 0, 0), (0, 1, 3), kind="multi_turn"),
    row("trained", "b", 1, (5, 0, 0), (3, 1, 3), kind="multi_turn"),
    row("trained", "c", 0, (1, 0, 0), (1, 1, 3), kind="harmful", refused=(True, False)),
]
JUDGES = [{"name": "own", "trained_agents": [0, 1]}, {"name": "strict", "trained_agents": []}]


@pytest.fixture
def summary():
    return summarise(ROWS, ["own", "own"], JUDGES, None)


def test_turns_are_averaged_before_questions(summary):
    own = summary["agents"][0]["own_reward"]
    assert own["base"] == pytest.approx((0 + 1 + 0) / 3)
    assert own["trained"] == pytest.approx((1 + 4 + 1) / 3)
    assert own["n"] == 3


def test_held_out_judges_count_in_deviations_of_their_base_scores(summary):
    """Base scores are 1, 2, 3 in equal parts: mean 2, deviation √(2/3)."""
    held_out = summary["agents"][0]["held_out_reward"]
    assert held_out["base"] == pytest.approx(-1 / (2 / 3) ** 0.5)
    assert held_out["trained"] == pytest.approx(((2 - 2) + (1.5 - 2) + (1 - 2)) / 3 / (2 / 3) ** 0.5)
    assert summary["held_out_judges"] == ["strict"]


def test_a_judge_that_scores_all_base_answers_alike_is_left_out():
    flat = [r | {"scores": r["scores"] | {"strict": [1, 1]}, "aggregate_scores": {"own": 0, "strict": 1}} for r in ROWS]
    found = summarise(flat, ["own", "own"], JUDGES, None)
    assert found["held_out_judges"] == []
    assert found["agents"][0]["held_out_reward"] is None
    assert found["agents"][0]["win_rate"] is None


def test_win_rate_averages_turns_and_counts_ties_half(summary):
    """Agent 0: a wins; b loses, then wins; c ties. Agent 1 loses everywhere; the team's answers tie."""
    assert summary["agents"][0]["win_rate"]["rate"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert summary["agents"][1]["win_rate"]["rate"] == 0
    assert summary["team"]["win_rate"]["rate"] == 0.5
    assert summary["agents"][0]["win_rate"]["judge"] == "mean of strict"


def test_a_pairwise_judge_replaces_the_held_out_ones():
    preferred = {"preferred": [1.0, 0.5, 0.0], "consistent": [True, False, True]}
    rows = [r | preferred if r["policy"] == "trained" and r["turn"] == 0 else r for r in ROWS]
    found = summarise(rows, ["own", "own"], JUDGES, "chat")
    assert [agent["win_rate"]["rate"] for agent in found["agents"]] == [1.0, 0.5]
    assert [agent["win_rate"]["position_consistent"] for agent in found["agents"]] == [1.0, 0.0]
    assert found["team"]["win_rate"] == {
        "rate": 0.0, "low": 0.0, "high": 0.0, "n": 3, "position_consistent": 1.0, "judge": "chat"
    }  # fmt: skip


def test_refusals_are_split_by_kind(summary):
    harmful, harmless = (summary["agents"][0][f"refusal_{kind}"] for kind in ("harmful", "harmless"))
    assert (harmful["trained"], harmful["n"]) == (1.0, 1)
    assert (harmless["trained"], harmless["n"]) == (0.0, 2)
    refusal = summary["by_kind"]["harmful"]["refusal"]
    assert [(m["base"], m["trained"], m["n"]) for m in refusal] == [(0.0, 1.0, 1), (0.0, 0.0, 1)]
    reward = summary["by_kind"]["multi_turn"]["own_reward"]
    assert [(m["base"], m["trained"]) for m in reward] == [(1.0, 4.0), (0.0, 0.0)]
    assert "borderline" not in summary["by_kind"]


def test_cross_rewards_have_a_row_per_speaker_and_a_column_per_judge(summary):
    cross = summary["cross_rewards"]
    assert cross["rows"] == ["agent 0", "agent 1", "team"]
    assert cross["judges"] == JUDGES
    assert cross["base"][2] == [0.0, 3.0]
    assert cross["trained"][1] == [0.0, 1.0]
    assert cross["difference"][0][0] == pytest.approx(2 - 1 / 3)


def test_kl_truncation_length_and_fallbacks(summary):
    assert summary["agents"][1]["kl_to_base"]["mean"] == 0.25
    assert summary["agents"][0]["truncated"]["base"] == 1.0
    assert summary["team"]["length"]["trained"] == 3
    fallbacks = summary["controller_fallbacks"]  # in one of two turns of one of three questions
    assert (fallbacks["base"], fallbacks["trained"], fallbacks["n"]) == (pytest.approx(1 / 6), 0.0, 3)
    assert fallbacks["low"] < 0 == fallbacks["high"]
    assert summary["agreement"]["base"] == pytest.approx(1 / 3)
    assert "kl_to_base" not in summary["team"]


def test_the_team_is_compared_with_one_answer_of_the_base_model():
    """By the own model: base answers 0 and 2 of two agents are 1 on average; the trained team's answer has 5."""
    rows = [row("base", "a", 0, (0, 2, 9), (1, 2, 3)), row("trained", "a", 0, (7, 7, 5), (1, 2, 3))]
    found = summarise(rows, ["own", "own"], JUDGES, None)["team"]["against_single"]
    assert (found["own_reward"]["base"], found["own_reward"]["trained"]) == (1.0, 5.0)
    deviation = (2 / 3) ** 0.5
    assert found["held_out_reward"]["base"] == pytest.approx(-0.5 / deviation)
    assert found["held_out_reward"]["trained"] == pytest.approx(1 / deviation)


def test_a_metric_of_no_question_is_none():
    assert metric(ROWS, lambda row: 1.0, ("borderline",)) is None
