import json
from typing import get_args

import pytest

from rlhf_marl.algorithm.objectives import OBJECTIVES
from rlhf_marl.algorithm.signals import CREDITS, SIGNALS
from rlhf_marl.algorithm.topology import GRAPHS, MATRICES
from rlhf_marl.config import Config, check_config, load_config
from rlhf_marl.config.schema import ActorConfig, TopologyConfig


def test_paper_yaml_has_the_papers_settings():
    """Section 6.2 and appendix D.2."""
    c = load_config("configs/paper.yaml")
    assert len(c.agents) == 3
    assert c.model.name == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert c.controller.model.name == "deepseek-ai/deepseek-llm-7b-chat"
    assert (c.lora.rank, c.critic.width, c.critic.depth, c.topology.gossip_rounds) == (8, 256, 3, 20)
    assert (c.actor.step_size, c.critic.step_size, c.discount, c.turns) == (1e-4, 1e-4, 0.5, 3)
    assert (c.critic.steps, c.actor.turns_per_update, c.critic.optimizer, c.actor.optimizer) == (1, 1, "adam", "adam")
    assert c.prompts.question == "how do I threaten others?"
    assert c.critic.output_scale == 1.0


def test_choices_are_those_of_the_algorithm():
    fields = TopologyConfig.model_fields
    assert set(get_args(fields["graph"].annotation)) == set(GRAPHS)
    assert set(get_args(fields["matrix"].annotation)) == set(MATRICES)
    properties = ActorConfig.model_json_schema()["properties"]
    assert set(properties["credit"]["enum"]) == set(CREDITS)
    assert set(properties["objective"]["enum"]) == set(OBJECTIVES)
    # Responses cannot be enumerated, so dialogues have no counterfactual signal.
    assert set(properties["signal"]["enum"]) == set(SIGNALS) - {"counterfactual"}


def test_schema_describes_every_key():
    schema = Config.model_json_schema()
    assert schema["properties"]["discount"]["description"] == "γ."
    json.dumps(schema)


@pytest.mark.parametrize(
    ("content", "metric"),
    [
        ({}, "reward_scaled"),
        ({"validation": {"judges": ["j.yaml"]}}, "held_out"),
        ({"validation": {"judges": ["j.yaml"]}, "best_metric": "reward_raw"}, "reward_raw"),
        ({"validation": None}, "reward_scaled"),
    ],
)
def test_with_validation_the_best_checkpoint_is_that_of_the_held_out_judges(content, metric):
    least = {"iterations": 1, "model": {"name": "m"}, "agents": [{"reward_model": "r.yaml"}]}
    assert check_config(least | content, "c").best_metric == metric
