"""Summaries fit the schema of evaluation.json; damaged ones do not."""

import json
import math

import pytest
from pydantic import ValidationError

from rlhf_marl.evaluation.schema import VERSION, Numbers, Settings, Summary
from rlhf_marl.evaluation.summary import summarise
from tests.evaluation.examples import SETTINGS
from tests.evaluation.test_summary import JUDGES, ROWS


@pytest.fixture
def summary():
    return summarise(ROWS, ["own", "own"], JUDGES, None)


def declared(model):
    return set(model.model_fields)


def test_a_summary_is_valid_and_has_no_key_that_is_not_described(summary):
    found = Summary.model_validate(summary)
    assert found.agents[1].own_reward.n == 3
    assert set(summary) == declared(Summary)
    assert set(summary["agents"][0]) == declared(type(found.agents[0]))
    assert set(summary["team"]) == declared(type(found.team))
    assert set(summary["team"]["win_rate"]) == declared(type(found.team.win_rate))
    assert set(summary["by_kind"]["harmful"]) == declared(type(found.by_kind["harmful"]))
    assert set(SETTINGS) == declared(Settings)


def test_the_whole_file_is_valid_after_json(summary):
    content = {"version": VERSION, "settings": SETTINGS, "warnings": [], **summary}
    assert Numbers.model_validate(json.loads(json.dumps(content))).team.verdict == summary["team"]["verdict"]


@pytest.mark.parametrize(
    "damage",
    [
        {"agreement": 3},
        {"team": {}},
        {"held_out_judges": None},
        {
            "controller_fallbacks": {
                "base": math.nan,
                "trained": 0.0,
                "difference": 0.0,
                "low": 0.0,
                "high": 0.0,
                "n": 1,
            }
        },
    ],
)
def test_damage_is_not_valid(summary, damage):
    with pytest.raises(ValidationError):
        Summary.model_validate(summary | damage)


def test_cross_rewards_are_rectangular(summary):
    with pytest.raises(ValidationError, match="low is not a table of 3 rows and 2 judges"):
        Summary.model_validate(summary | {"cross_rewards": summary["cross_rewards"] | {"low": [[0.0]]}})
