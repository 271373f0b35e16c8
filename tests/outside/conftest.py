import pytest
import torch

from rlhf_marl.dialogue.controller import ScriptedController
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import Questions
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.training.build import Experiment
from tests.conftest import tiny_tokenizer


@pytest.fixture
def around():
    """Builder of an experiment around a team of two: one question, and a controller that repeats agent 0."""

    def builder_of(new_team):
        def builder(config, name, device, journal):
            team = new_team()
            player = Player(
                team.respond,
                ScriptedController("{{ responses[0] }}", ["-"]),
                tiny_tokenizer(),
                64,
                [Speaker("a"), Speaker("b")],
            )
            return Experiment(config, team, player, Questions(["?"], 0), [], torch.eye(2), journal)

        return builder

    return builder_of
