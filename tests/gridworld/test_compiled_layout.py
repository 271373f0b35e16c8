from rlhf_marl.algorithm.signals import SIGNALS
from rlhf_marl.gridworld.compiled_layout import SIGNAL_CODES


def test_every_signal_of_the_registry_is_ported():
    assert set(SIGNAL_CODES) == set(SIGNALS)
