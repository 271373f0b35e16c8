from rlhf_marl.algorithm.signals import SIGNALS
from rlhf_marl.gridworld.compiled_layout import SIGNAL_CODES


def test_every_signal_with_a_critic_is_ported():
    assert set(SIGNAL_CODES) == {name for name, signal in SIGNALS.items() if signal.critic != "none"}
