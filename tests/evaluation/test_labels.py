"""Every number of an agent has a label."""

from rlhf_marl.evaluation.labels import LABELS, label_of
from rlhf_marl.evaluation.schema import Agent


def test_every_metric_of_an_agent_has_a_label():
    assert set(LABELS) == set(Agent.model_fields) - {"agent", "reward_model", "verdict"}


def test_other_keys_are_names_of_judges():
    assert label_of("length") == ("tokens", "answer length in tokens")
    assert label_of("kind") == ("judge kind", "judge kind")
