"""A second registry entry: the agent's own reward, without a critic (REINFORCE)."""

import pytest

import rlhf_marl
from rlhf_marl.algorithm.signals import SIGNALS, Signal
from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError


def own_reward(values, mixer, credit):
    return values.reward.expand(values.value.shape)


@pytest.fixture
def reinforce(monkeypatch):
    monkeypatch.setitem(SIGNALS, "own_reward", Signal("v", own_reward))


@pytest.mark.usefixtures("reinforce")
def test_a_new_signal_is_a_choice_of_the_config_and_trains(tiny_content, tmp_path):
    content = tiny_content | {"actor": {"signal": "own_reward", "baseline": "none", "credit": "consensus"}}
    run = rlhf_marl.train(content, run_dir=tmp_path / "run")
    assert run.metrics["actor_signal"].tolist() == run.metrics["reward_scaled"].tolist()


def test_without_the_entry_the_config_refuses_it(tiny_content):
    expected = (
        "c: actor.signal: 'own_reward' is not allowed; choose 'td_q_literal', 'td_q', 'td_v', 'return' or 'q_value'"
    )
    with pytest.raises(UsageError, match=expected):
        check_config(tiny_content | {"actor": {"signal": "own_reward"}}, "c")
