"""A second team: bandits without any language model, under the same training loop."""

from dataclasses import replace

import torch

import rlhf_marl
from rlhf_marl.dialogue.controller import ScriptedController
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import Questions
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.training.build import Experiment
from tests.conftest import tiny_tokenizer


class Bandits:
    """Agent i says 1 with probability w_i, and is paid for it."""

    reward_models, w = ("ones", "ones"), torch.full((2,), 0.5)

    def respond(self, states, dialogues, turn):
        draws = [[str(int(torch.rand(1) < w)) for _ in dialogues] for w in self.w]
        return [[Sample([int(text)], text, [0.0], finished=True) for text in agent] for agent in draws]

    def score(self, turn):
        rewards = torch.tensor([[float(text) for text in agent] for agent in turn.texts])
        return replace(turn, reward_raw=rewards, reward_scaled=rewards)

    def learn(self, turns):
        paid = turns[0].reward_scaled.mean(-1)
        self.w = (self.w + 0.1 * paid).clamp_max(1.0)
        return [{"reward_raw": reward, "reward_scaled": reward} for reward in paid.tolist()]

    def state_dict(self):
        return {f"agent_{i}.w": w.clone() for i, w in enumerate(self.w)}

    def load_state_dict(self, state):
        self.w = torch.stack([state[f"agent_{i}.w"] for i in range(2)])

    def save_adapters(self, folder):
        folder.mkdir(exist_ok=True)


def test_the_training_loop_takes_it_as_it_is(tiny_content, tmp_path):
    def builder(config, name, device, journal):
        team = Bandits()
        player = Player(team.respond, ScriptedController("{{ responses[0] }}", ["-"]), tiny_tokenizer(), 64)
        return Experiment(config, team, player, Questions(["?"], 0), [], torch.eye(2), journal)

    run = rlhf_marl.train(tiny_content | {"iterations": 9}, run_dir=tmp_path / "run", builder=builder)
    assert run.metrics.groupby("iteration")["reward_scaled"].mean().tail(2).tolist() == [1.0, 1.0]
    resumed = rlhf_marl.train(tiny_content | {"iterations": 12}, run_dir=run.path, resume=True, builder=builder)
    assert resumed.metrics["reward_scaled"].tail(12).eq(1.0).all()
