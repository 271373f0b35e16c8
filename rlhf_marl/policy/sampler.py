"""The single interface to a language model: prompts and sampling keys in, sampled tokens out.

Agents, the shared controller, local judges and evaluation all go through a Sampler.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol, final

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.decoder import Decoder
from rlhf_marl.policy.generation import SamplingKey, generate, sampling_uniforms
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.padding import left_pad, positions
from rlhf_marl.policy.prefix_cache import PrefixCache
from rlhf_marl.policy.straight_step import decode_step


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response.

    Attributes:
        tokens: ids as sampled, including the stop token if reached.
        text: decoded without special tokens, stripped.
        log_probabilities: log π(token) of the sampling policy at the sampling temperature, one per token, in nats.
        finished: whether a stop token was reached within the token limit.
        reference_tokens: the text in tokens of the reference model, of an agent whose own model has another tokenizer.
    """

    tokens: list[int]
    text: str
    log_probabilities: list[float]
    finished: bool
    reference_tokens: list[int] | None = None

    @property
    def for_critics(self) -> list[int]:
        """The tokens that critics read."""
        return self.tokens if self.reference_tokens is None else self.reference_tokens

    @property
    def absent(self) -> bool:
        """Whether there is no response, because the agent was lost; a response has at least one token."""
        return not self.tokens


ABSENT = Sample([], "", [], finished=True)


class Sampler(Protocol):
    """Samples from a base model and from the agents' policies over it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def context_length(self) -> int:
        """Maximum tokens of prompt and response together."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[SamplingKey],
        *,
        max_new_tokens: int,
        temperature: float,
        agents: slice | None,
        cached_prefix: Sequence[int] = (),
    ) -> list[Sample]:
        """One response per row.

        Args:
            prompts: token ids of every row.
            keys: seed each row's random numbers; unused and empty at temperature 0, which is greedy.
            agents: who answer; rows are agent by agent, and equally many of each. None: the base model answers.
            cached_prefix: token ids that all prompts begin with, to be kept in the prefix cache for later calls.
        """
        ...

    def next_token(self, prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> list[list[float]]:
        """The base model's next-token probabilities, renormalised over the candidates: one row per prompt."""
        ...


@final
class TransformersSampler:
    """A transformers model, with or without stacked adapters."""

    def __init__(self, chat_model: ChatModel, adapters: StackedAdapters | None = None) -> None:
        self._model, self._stop_tokens = chat_model.model, chat_model.stop_tokens
        self.tokenizer, self.context_length = chat_model.tokenizer, chat_model.context_length
        self._adapters = adapters
        self._prefixes = PrefixCache()
        on_gpu = self._model.device.type == "cuda" and Decoder.supports(self._model)
        self._decoder = Decoder(self._model, adapters) if on_gpu else None

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[SamplingKey],
        *,
        max_new_tokens: int,
        temperature: float,
        agents: slice | None,
        cached_prefix: Sequence[int] = (),
    ) -> list[Sample]:
        n_policies = 1
        if agents is not None:
            assert self._adapters is not None
            n_policies = len(range(self._adapters.n_agents)[agents])
        uniforms = torch.stack([sampling_uniforms(key, max_new_tokens) for key in keys]) if temperature else None
        with self._adapters.use(agents) if self._adapters else nullcontext():
            options: dict[str, Any] = {
                "max_new_tokens": max_new_tokens,
                "stop_tokens": self._stop_tokens,
                "uniforms": uniforms,
                "temperature": temperature,
                "cached_prefix": self._prefixes.read(self._model, cached_prefix) if cached_prefix else None,
            }
            if self._decoder is not None:
                rows = self._decoder.generate(prompts, agents=agents, **options)
            else:
                decode = decode_step(self._model, self._adapters, agents)
                rows = generate(self._model, prompts, n_policies=n_policies, decode=decode, **options)
        texts = self.tokenizer.batch_decode([tokens for tokens, _ in rows], skip_special_tokens=True)
        return [
            Sample(tokens, text.strip(), log_probabilities, finished=tokens[-1] in self._stop_tokens)
            for (tokens, log_probabilities), text in zip(rows, texts, strict=True)
        ]

    @torch.inference_mode()
    def next_token(self, prompts: Sequence[Sequence[int]], candidates: Sequence[int]) -> list[list[float]]:
        ids, mask = left_pad(prompts, self._stop_tokens[0], self._model.device)
        with self._adapters.use(None) if self._adapters else nullcontext():
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1
            ).logits[:, -1]
        return list(torch.softmax(logits[:, list(candidates)].float(), dim=-1).tolist())


@final
class LocalChat:
    """A sampler as greedy chat: one completion per conversation."""

    def __init__(self, sampler: Sampler, agents: slice | None = None) -> None:
        """agents: whose adapter is active; None: the base model, with worked examples kept in the prefix cache."""
        self._sampler, self._agents = sampler, agents

    def __call__(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        budget = self._sampler.context_length - max_tokens
        prompts = [chat_tokens(self._sampler.tokenizer, messages, budget) for messages in conversations]
        samples = self._sampler.sample(
            prompts,
            (),
            max_new_tokens=max_tokens,
            temperature=0.0,
            agents=self._agents,
            cached_prefix=self._worked_examples(conversations[0], prompts) if self._agents is None else (),
        )
        return [sample.text for sample in samples]

    def _worked_examples(self, messages: Sequence[Message], prompts: Sequence[Sequence[int]]) -> list[int]:
        """Token ids of the messages before the last one (after a system message) that all prompts share."""
        if len(messages) < 3:
            return []
        columns = zip(chat_tokens(self._sampler.tokenizer, messages[:-1], 10**9), *prompts, strict=False)
        return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
