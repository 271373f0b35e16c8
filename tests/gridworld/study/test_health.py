import numpy as np
import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.health import symptoms, warnings_in_words
from tests.gridworld.study.conftest import made_up


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("dead_actors", 0.03, "dead_actors"),
        ("dead", 1.0, "dead"),
        ("entropy", 0.04, "entropy"),
        ("positive", 0.01, "one_sided"),
        ("critic_value", 101.0, "critic_scale"),
    ],
)
def test_each_symptom_is_of_the_last_point(name, value, kind):
    result = made_up(Setting(), np.zeros((3, 5)))
    result.arrays[name][:, :4] = value
    assert list(symptoms(result)) == []
    result.arrays[name][:, 4] = value
    assert [found for found, _ in symptoms(result)] == [kind]


def test_warnings_name_the_arms():
    result = made_up(Setting(), np.zeros((3, 5)))
    assert list(symptoms(result)) == []
    result.arrays["positive"][:] = 0.999
    result.arrays["dead_actors"][:, -1] = 0.5
    result.arrays["skipped"][0, 2] = 1
    assert [kind for kind, _ in symptoms(result)] == ["skipped", "dead_actors", "one_sided"]
    (first, *_) = warnings_in_words({"r": {"fig6": {f"m = {m}": result for m in range(5)}}})
    assert first.startswith("r (fig6: m = 0; fig6: m = 1; fig6: m = 2 and 2 more): steps that were not finite")
