import pytest
from pydantic import ValidationError

from rlhf_marl.gridworld.setting import Setting


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_agents": 66}, "n_agents"),
        ({"n_agents": 0}, "n_agents"),
        ({"discount": 1.0}, "discount"),
        ({"critic_steps": 0}, "critic_steps"),
        ({"signal": "td"}, "signal"),
        ({"signal": "q_value", "credit": "local"}, "credit"),
        ({"control": "centralised", "yardstick": True}, "yardstick"),
        ({"reward_shift": float("nan")}, "reward_shift"),
        ({"widht": 3}, "widht"),
    ],
)
def test_bad_settings_are_named(changes, word):
    with pytest.raises(ValidationError, match=word):
        Setting(**changes)
