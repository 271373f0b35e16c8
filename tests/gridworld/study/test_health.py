import numpy as np

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.health import symptoms, warnings_in_words
from tests.gridworld.study.conftest import made_up


def test_warnings_name_the_arms():
    result = made_up(Setting(), np.zeros((3, 5)))
    assert list(symptoms(result)) == []
    result.arrays["positive"][:] = 0.999
    result.arrays["dead_actors"][:, -1] = 0.5
    result.arrays["skipped"][0, 2] = 1
    assert [kind for kind, _ in symptoms(result)] == ["skipped", "dead_actors", "one_sided"]
    (first, *_) = warnings_in_words({"r": {"fig6": {f"m = {m}": result for m in range(5)}}})
    assert first.startswith("r (fig6: m = 0; fig6: m = 1; fig6: m = 2 and 2 more): steps that were not finite")
