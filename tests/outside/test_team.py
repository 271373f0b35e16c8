"""A second team: bandits without any language model. Agent i answers 1 with probability w_i, which is its reward."""

from dataclasses import replace

import torch

import rlhf_marl
from rlhf_marl.policy.sampler import Sample


class Bandits:
    reward_models, w = ("ones", "ones"), torch.full((2,), 0.5)

    def respond(self, prompts, dialogues, turn):
        return [[Sample([0], str(int(torch.rand(1) < w)), [0.0], finished=True) for _ in dialogues] for w in self.w]

    def score(self, turn):
        rewards = torch.tensor([[float(text) for text in agent] for agent in turn.texts])
        return replace(turn, reward_raw=rewards, reward_scaled=rewards)

    def learn(self, turns):
        self.w = (self.w + 0.1 * turns[0].reward_scaled.mean(-1)).clamp_max(1.0)
        return [{"reward_raw": paid, "reward_scaled": paid} for paid in turns[0].reward_scaled.mean(-1).tolist()]

    def state_dict(self):
        return {f"agent_{i}.w": w.clone() for i, w in enumerate(self.w)}

    def load_state_dict(self, state):
        self.w = torch.stack([state[f"agent_{i}.w"] for i in range(2)])

    def save_adapters(self, folder):
        folder.mkdir(exist_ok=True)


def test_the_training_loop_takes_it_as_it_is(tiny_content, tmp_path, around):
    run = rlhf_marl.train(tiny_content | {"iterations": 9}, run_dir=tmp_path / "run", builder=around(Bandits))
    assert run.metrics.groupby("iteration")["reward_scaled"].mean().tail(2).tolist() == [1.0, 1.0]
    resumed = rlhf_marl.train(tiny_content | {"iterations": 12}, run_dir=run.path, resume=True, builder=around(Bandits))
    assert resumed.metrics["reward_scaled"].tail(12).eq(1.0).all()
