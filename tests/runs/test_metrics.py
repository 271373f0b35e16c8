"""Summaries of a metrics series, by hand."""

from rlhf_marl.runs.metrics import first_and_last_fifth


def test_first_and_last_fifth():
    assert first_and_last_fifth([float(i) for i in range(11)]) == (0.5, 9.5)  # two of eleven
    assert first_and_last_fifth([0.0]) == (0.0, 0.0)
