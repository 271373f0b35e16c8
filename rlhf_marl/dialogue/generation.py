"""Batched sampling of responses, token by token, with a key-value cache.

Randomness is one uniform number per token, drawn from a generator that only (seed, agent, dialogue, turn) determines:
a run repeats bit for bit, adding an agent does not change the others' draws, and there is no generator state to save.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_marl.chat import left_pad, positions


@dataclass(frozen=True, slots=True)
class Response:
    """What one agent answered in one dialogue.

    Attributes:
        tokens: the sampled ids, the end token included if it was reached.
        text: decoded without special tokens.
        truncated: the token limit came before an end token.
    """

    tokens: list[int]
    text: str
    truncated: bool


def sampling_uniforms(seed: int, agent: int, dialogue: int, turn: int, n_tokens: int) -> Tensor:
    """(n_tokens,) uniform numbers in [0, 1) that these four integers alone determine, float64."""
    draws = np.random.default_rng(np.random.SeedSequence([seed, agent, dialogue, turn])).random(n_tokens)
    return torch.from_numpy(draws)


def sample(logits: Tensor, uniforms: Tensor | None, temperature: float) -> Tensor:
    """Inverse-CDF sampling of softmax(logits / temperature); greedy where uniforms is None.

    logits: (rows, vocabulary); uniforms: (rows,) in [0, 1); returns (rows,) token ids.
    """
    if uniforms is None:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.to(uniforms.device).double() / temperature, -1).cumsum(-1)
    target = uniforms.unsqueeze(-1) * cumulative[..., -1:]
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return tokens.to(logits.device)


def read_beginning(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], n_policies: int
) -> tuple[DynamicCache, int]:
    """Read what all prompts begin with, once per policy: the cache for all rows, and how many tokens it holds.

    At least one token of every prompt is left. Rows belong to n_policies policies, contiguously and evenly. Gradients
    flow through the cache.
    """
    cache = DynamicCache(config=model.config)
    columns = zip(*prompts, strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min(alike, min(map(len, prompts)) - 1)
    if shared:
        beginning = torch.tensor([list(prompts[0][:shared])] * n_policies, device=model.device)
        model(input_ids=beginning, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts) // n_policies)
    return cache, shared


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    n_policies: int = 1,
) -> list[list[int]]:
    """Sample (or, without uniforms, take the most likely) continuation of each prompt.

    Args:
        prompts: token ids per row; padded here on the left.
        uniforms: (rows, max_new_tokens) numbers in [0, 1), or None for greedy decoding.
        n_policies: rows belong to this many policies, contiguously and evenly. What all prompts begin with is read once
            per policy.

    Returns:
        Token ids per row, ending with an end token or at the limit.
    """
    device = model.device
    ends = torch.tensor(end_tokens, device=device)
    if uniforms is not None and device.type != "mps":  # Apple's GPU has no float64: there the CPU samples
        uniforms = uniforms.to(device)
    cache, shared = read_beginning(model, prompts, n_policies)
    ids, rest = left_pad([prompt[shared:] for prompt in prompts], end_tokens[0], device)
    mask = torch.cat([rest.new_ones(len(prompts), shared), rest], dim=-1)
    position_ids, step_ids = positions(mask)[:, shared:], ids
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    sampled = []
    for step in range(max_new_tokens):
        logits = model(
            input_ids=step_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        token = sample(logits, None if uniforms is None else uniforms[:, step], temperature)
        sampled.append(token)
        finished = finished | torch.isin(token, ends)
        if bool(finished.all()):
            break
        step_ids = token.unsqueeze(-1)
        position_ids = position_ids[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(step_ids)], dim=-1)
    return [_until_end(row, set(end_tokens)) for row in torch.stack(sampled, dim=-1).tolist()]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
