"""Summaries of a metrics series, by hand."""

import pytest
from scipy.stats import pearsonr

from rlhf_marl.runs.metrics import before_and_after, first_and_last_fifth, value_correlation


def test_first_and_last_fifth():
    assert first_and_last_fifth([float(i) for i in range(11)]) == (0.5, 9.5)  # two of eleven
    assert first_and_last_fifth([0.0]) == (0.0, 0.0)


def turn(iteration, dialogue, number, reward, value):
    place = {"iteration": iteration, "dialogue": dialogue, "turn": number}
    return place | {"reward_scaled": reward, "critic_value": value}


def test_value_correlation_by_hand():
    """γ = 1/2. The first half is left out, agents are averaged, and each turn number is centred by itself.

    Dialogue b of the second half earns b, then 2 b: returns 2 b and 2 b. Values b and 5 + b, but one is off by 3.
    """
    rows = [turn(0, b, k, [100.0 * b, 0.0], [-b, -b]) for b in range(4) for k in range(2)]
    for b in range(4):
        rows.append(turn(1, 4 + b, 1, [4.0 * b, 0.0], [5.0 + b, 5.0 + b]))
        rows.append(turn(1, 4 + b, 0, [2.0 * b, 0.0], [b + 3.0 * (b == 0), b - 3.0 * (b == 1)]))
    values = [*(x - 1.5 for x in (1.5, -0.5, 2.0, 3.0)), -1.5, -0.5, 0.5, 1.5]
    values[:4] = [x - sum(values[:4]) / 4 for x in values[:4]]
    returns = [-3.0, -1.0, 1.0, 3.0] * 2
    found = value_correlation(rows, 0.5)
    assert found is not None
    assert found[0] == pytest.approx(pearsonr(values, returns).statistic)
    assert -1 < found[1] < found[0] < found[2] < 1


def test_there_is_no_correlation_of_what_does_not_vary_or_is_too_little():
    assert value_correlation([], 0.5) is None
    assert value_correlation([turn(0, b, 0, [1.0 * b], None) for b in range(20)], 0.5) is None
    assert value_correlation([turn(0, b, 0, [1.0 * b], [0.25]) for b in range(20)], 0.5) is None
    assert value_correlation([turn(0, b, 0, [1.0 * b], [1.0 * b]) for b in range(4)], 0.5) is None


def test_the_question_asked_again_after_the_most_iterations_is_shown():
    def turn(iteration, dialogue, prompt, number=0):
        return {"iteration": iteration, "dialogue": dialogue, "turn": number, "prompt": prompt}

    turns = [turn(0, 0, "a"), turn(0, 1, "b"), turn(0, 1, "late", 1), turn(1, 3, "b"), turn(2, 5, "b"), turn(2, 4, "b")]
    assert before_and_after([*turns, turn(1, 2, "a"), turn(9, 9, "late", 1)]) == (turn(0, 1, "b"), turn(2, 5, "b"))
    assert before_and_after([turn(0, 0, "a"), turn(0, 1, "a"), turn(1, 2, "b")]) is None
    assert before_and_after([]) is None
