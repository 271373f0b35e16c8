"""Two runs on the same questions, by hand."""

import pytest

from rlhf_marl.evaluation.compare import compare
from rlhf_marl.evaluation.files import Evaluation
from tests.evaluation.examples import SETTINGS
from tests.evaluation.test_summary import ROWS


def evaluation(rows, **settings):
    judges = {"judges": {"own": "1", "strict": "2"}}
    return Evaluation({"settings": SETTINGS | judges | settings, "agents": [{}, {}]}, rows, reused=True)


def test_trained_agents_are_compared_on_the_questions_of_both():
    better = [row | {"tokens": [5, 6], "aggregate_tokens": 8} for row in ROWS if row["question"] != "c"]
    found = compare(evaluation(ROWS), evaluation(better))
    assert found["warnings"] == []
    length = found["agents"][0]["length"]
    assert (length["base"], length["trained"], length["difference"], length["n"]) == (4.0, 5.0, 1.0, 2)
    assert found["agents"][1]["own"]["difference"] == 0.0
    assert found["team"]["length"]["difference"] == 5.0
    assert found["agents"][0]["refusal_harmful"] is None  # the harmful question is the first run's alone


def test_differences_between_the_evaluations_are_warnings():
    found = compare(evaluation(ROWS), evaluation(ROWS, seed=2, judges={"own": "3"}))
    assert found["warnings"] == [
        "seed differs: 1 and 2",
        "the runs were judged by different reward models; only text metrics are compared",
    ]
    assert "own" not in found["agents"][0]


@pytest.mark.parametrize("rows", [[], [row for row in ROWS if row["policy"] == "base"]])
def test_without_a_common_question_nothing_is_compared(rows):
    found = compare(evaluation(ROWS), evaluation(rows))
    assert found == {"agents": [], "team": {}, "warnings": ["the runs have no questions in common"]}
