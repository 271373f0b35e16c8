"""A second sampler: it replies with fixed texts."""

from functools import partial

import rlhf_marl
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.training.build import build

LINES = ("aei", "xyz")


class ScriptedSampler:
    """Agent i always says LINES[i]; the base model says its prompt's length."""

    def __init__(self, chat_model, adapters):
        self.tokenizer, self.context_length = chat_model.tokenizer, chat_model.context_length

    def sample(self, prompts, keys, *, max_new_tokens, temperature, agents, cached_prefix=()):
        texts = [LINES[key.agent] for key in keys] if agents is not None else [str(len(prompt)) for prompt in prompts]
        tokens = [self.tokenizer(text)["input_ids"] for text in texts]
        return [Sample(ids, text, [-1.0] * len(ids), True) for ids, text in zip(tokens, texts, strict=True)]

    def next_token(self, prompts, candidates):
        return [[1 / len(candidates)] * len(candidates) for _ in prompts]


def test_agents_and_the_shared_controller_speak_through_it(tiny_content, tmp_path):
    run = rlhf_marl.train(tiny_content, run_dir=tmp_path / "run", builder=partial(build, sampler=ScriptedSampler))
    for _, turn in run.dialogues.iterrows():
        assert [response["text"] for response in turn["responses"]] == ["aei", "xyz"]
        assert turn["reward_raw"] == [0.75, 3.0]  # three vowels of four; three letters
        assert turn["aggregate"].isdecimal()
    assert run.metrics["gradient_norm"].eq(0).all()  # all dialogues answer alike: no agent has an advantage
