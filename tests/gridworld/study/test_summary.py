import json

import numpy as np
import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.claims import Verdict
from rlhf_marl.gridworld.study.config import StudyConfig
from rlhf_marl.gridworld.study.summary import summary
from tests.gridworld.study.conftest import made_up


@pytest.fixture
def result():
    """Values of 1, 2, 3 at each of four points; the critics' distance and the consensus were not measured."""
    found = made_up(Setting(), np.array([[1.0], [2.0], [3.0]]).repeat(4, axis=1))
    found.arrays.update({"gap": np.full(3, 0.25), "projected": np.zeros((3, 4)), "distance": np.full((3, 4), np.nan)})
    found.arrays.update({f"disagreement_{when}": np.ones((3, 4)) for when in ("before", "after")})
    found.arrays["consensus"][0, 5] = np.nan
    return found


def test_curves_and_numbers_by_hand(result):
    """The mean of 1, 2, 3 is 2 and its interval 2 ± 2.48414; the gaps to -2 are the same, turned round."""
    config = StudyConfig(regimes={"r": {}}, experiments=["fig2"])
    content = summary(config, [], {"r": {"fig2": {"TD error": result, "Q value": result}}})
    assert content["seconds"] == 1.0  # one run, although two arms share it
    arm = content["experiments"]["r"]["fig2"]["TD error"]
    assert arm["iterations"] == [100, 200, 300, 400]
    assert arm["value"] == {"mean": [2] * 4, "low": [-0.484138] * 4, "high": [4.48414] * 4}
    assert arm["gap"]["mean"] == [-4] * 4
    assert arm["baselines"] == {"random": -8, "start": -8, "constant": -7, "optimum": -2, "bound": -1.5}
    assert arm["spectral_gap"] == [0.25, 0.25, 0.25]
    assert arm["health"]["positive"] == [0.5] * 4
    assert arm["diagnostics"] == {}


def test_what_was_not_measured_is_left_out_or_null(result):
    verdict = Verdict("s", "c", "r", "fig2", "u", 1.0, float("nan"), float("nan"), 0.1, 0.3, "undetermined")
    config = StudyConfig(regimes={"r": {}}, experiments=["fig2"])
    content = json.loads(json.dumps(summary(config, [verdict], {"r": {"fig2": {"a": result}}}), allow_nan=False))
    arm = content["experiments"]["r"]["fig2"]["a"]
    assert arm["critics"].keys() == {"disagreement_before", "disagreement_after"}
    assert arm["consensus"] is None
    assert (content["claims"][0]["mean"], content["claims"][0]["low"]) == (1, None)
