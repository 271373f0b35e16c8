"""Batched sampling of responses, token by token, with a key-value cache.

Sampling uses one uniform number per token, from a generator seeded by (seed, agent, dialogue, turn) alone. A run
repeats bit for bit, adding an agent does not change the others' draws, and there is no generator state to save.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rlhf_marl.policy.prefix_cache import prefill

# Finished rows are dropped when at most this share remains: moving the cache costs about one decode step.
_WORTH_LEAVING = 0.75
_BLOCK = 256  # vocabulary entries per block of the cumulative sum
Generated = list[tuple[list[int], list[float]]]  # per row: token ids and their log-probabilities
DecodeStep = Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor]
"""(token (rows, 1), position (rows, 1), mask (rows, length), cache) -> next-token logits (rows, vocabulary)."""


class SamplingKey(NamedTuple):
    """The seed of one response's random numbers."""

    seed: int
    agent: int
    dialogue: int
    turn: int


def sampling_uniforms(key: SamplingKey, n_tokens: int) -> Tensor:
    """(n_tokens,) uniform numbers in [0, 1), float64, seeded by the key."""
    return torch.from_numpy(np.random.default_rng(np.random.SeedSequence(list(key))).random(n_tokens))


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in at least float32; no copy if they are float32 and the temperature is 1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def fill_absent(model: nn.Module, logits: Tensor) -> None:
    """Hide the tokens that `hide_absent_tokens` found, in place, if it found any. logits: (..., vocabulary)."""
    index = getattr(model, "absent_tokens", None)
    if index is not None:
        # Finite, so that 0 times it is 0 also in the entropy, and at any temperature. Gradients there are 0.
        logits.index_fill_(-1, index, torch.finfo(logits.dtype).min / 2048)


def sample(logits: Tensor, uniforms: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling of softmax(logits / temperature); greedy, at temperature 1, if uniforms is None.

    The cumulative sum runs over blocks of the vocabulary first, then within one block; the result is the same.

    logits: (rows, vocabulary); uniforms: (rows,) in [0, 1).
    Returns (rows,) token ids and their log-probabilities, in at least float32.
    """
    if uniforms is None:
        logits = tempered(logits, 1.0)
        largest, token = logits.max(-1)
        return token, largest - logits.logsumexp(-1)
    device, last = logits.device, logits.shape[-1] - 1
    logits = tempered(logits.to(uniforms.device), temperature)
    if padding := -logits.shape[-1] % _BLOCK:
        logits = nn.functional.pad(logits, (0, padding), value=-torch.inf)
    weights = torch.softmax(logits, -1).unflatten(-1, (-1, _BLOCK))
    blocks = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms.unsqueeze(-1) * blocks[:, -1:]
    block = torch.searchsorted(blocks, target, right=True).clamp_max(blocks.shape[-1] - 1)
    before = nn.functional.pad(blocks, (1, 0)).gather(-1, block)
    inside = weights.take_along_dim(block.unsqueeze(-1), 1).squeeze(1).double().cumsum(-1)
    place = torch.searchsorted(inside, target - before, right=True).clamp_max(_BLOCK - 1)
    token = (block * _BLOCK + place).clamp_max(last)  # NaN logits would give a token of the padding
    log_probability = weights.flatten(-2).gather(-1, token).log()
    return token.squeeze(-1).to(device), log_probability.squeeze(-1).to(device)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    n_policies: int = 1,
    cached_prefix: DynamicCache | None = None,
    decode: DecodeStep | None = None,
) -> Generated:
    """Sample a continuation of every row's prompt from the row's policy; greedy without uniforms.

    Finished rows are dropped from the batch, equally many per policy.

    Args:
        prompts: token ids of every row, policy by policy and equally many of each; padded here on the left.
        uniforms: (rows, max_new_tokens) numbers in [0, 1), or None for greedy decoding.
        cached_prefix: prefix cache of the tokens that all prompts begin with (`PrefixCache`).
        decode: the model's decode step; transformers' modules by default.

    Returns:
        Per row, token ids that end with a stop token or at the limit, and their log-probabilities.
    """
    device, decode = model.device, decode or module_step(model)
    ends = torch.tensor(stop_tokens, device=device)
    if uniforms is not None and device.type != "mps":  # MPS has no float64, so uniforms stay on the CPU
        uniforms = uniforms.to(device)
    logits, cache, mask = prefill(
        model, prompts, n_policies, stop_tokens[0], room=max_new_tokens - 1, cached_prefix=cached_prefix
    )
    position_ids = mask.sum(-1, keepdim=True) - 1
    rows = torch.arange(len(mask), device=device)
    ended = torch.zeros(len(mask), dtype=torch.bool, device=device)
    sampled = torch.full((len(mask), max_new_tokens), stop_tokens[0], device=device)
    log_probabilities = torch.zeros(sampled.shape, dtype=torch.promote_types(model.dtype, torch.float32), device=device)
    for step in range(max_new_tokens):
        drawn = None if uniforms is None else uniforms[rows.to(uniforms.device), step]
        token, log_probabilities[rows, step] = sample(logits, drawn, temperature)
        sampled[rows, step] = token
        ended = ended | torch.isin(token, ends)
        most = int((~ended).view(n_policies, -1).sum(-1).max())  # the largest number of unfinished rows of any policy
        if most == 0 or step + 1 == max_new_tokens:
            break
        if most <= _WORTH_LEAVING * len(rows) / n_policies:
            order = ended.view(n_policies, -1).byte().argsort(dim=-1, stable=True)[:, :most]
            kept = (order + torch.arange(0, len(rows), len(rows) // n_policies, device=device).unsqueeze(-1)).flatten()
            cache.batch_select_indices(kept)
            rows, ended, token, mask, position_ids = (x[kept] for x in (rows, ended, token, mask, position_ids))
        position_ids = position_ids + 1
        mask = torch.cat([mask, torch.ones_like(position_ids)], dim=-1)
        logits = decode(token.unsqueeze(-1), position_ids, mask, cache)
    return trimmed(sampled, log_probabilities, stop_tokens)


def module_step(model: PreTrainedModel) -> DecodeStep:
    """A decode step by transformers' modules."""

    def decode(token: Tensor, position: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        return model(
            input_ids=token,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    return decode


def trimmed(sampled: Tensor, log_probabilities: Tensor, stop_tokens: Sequence[int]) -> Generated:
    """Each row, (rows, max_new_tokens), up to its first stop token, with it."""
    stops = set(stop_tokens)
    lengths = [next((i + 1 for i, t in enumerate(row) if t in stops), len(row)) for row in sampled.tolist()]
    pairs = zip(sampled.tolist(), log_probabilities.tolist(), lengths, strict=True)
    return [(tokens[:length], logs[:length]) for tokens, logs, length in pairs]
