"""Batched sampling of responses, token by token, with a key-value cache.

Randomness is one uniform number per token, drawn from a generator that only (seed, agent, dialogue, turn) determines:
a run repeats bit for bit, adding an agent does not change the others' draws, and there is no generator state to save.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf_marl.policy.chat import left_pad, positions

# Rows that have ended leave the batch when at most this share stays: moving the cache costs about a step.
_WORTH_LEAVING = 0.75
# More tokens than this must be saved for what all prompts begin with to be read in a pass of its own.
_WORTH_READING = 64
_BLOCK = 256  # tokens, in sampling


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


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in float32, without a copy where that is what they are."""
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def sample(logits: Tensor, uniforms: Tensor | None, temperature: float) -> Tensor:
    """Inverse-CDF sampling of softmax(logits / temperature); greedy where uniforms is None.

    The cumulative sum is made over blocks of tokens first and then, exactly as over all of them, within one block.

    logits: (rows, vocabulary); uniforms: (rows,) in [0, 1); returns (rows,) token ids.
    """
    if uniforms is None:
        return logits.argmax(-1)
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
    return (block * _BLOCK + place).squeeze(-1).to(logits.device)


@final
class Memory:
    """Caches of what a frozen model reads again and again, such as the worked examples of a task.

    What is remembered was read in the same pieces as without a memory, so nothing depends on what came before.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    @torch.inference_mode()
    def read(self, model: PreTrainedModel, tokens: Sequence[int]) -> DynamicCache | None:
        """A cache of one row that holds these tokens, for `generate` to go on from; None where a layer does not see
        all earlier tokens."""
        if not _sees_all(model):
            return None
        key = tuple(tokens)
        cache = self._caches.pop(key, None) or _read(model, key, DynamicCache(config=model.config))
        self._caches[key] = cache  # the newest is the last
        if len(self._caches) > self._most:
            del self._caches[next(iter(self._caches))]
        return cache


def _read(model: PreTrainedModel, tokens: Sequence[int], cache: DynamicCache, n_policies: int = 1) -> DynamicCache:
    """Extend the cache by these tokens, which every policy reads; no logits are computed."""
    ids = torch.tensor([list(tokens)] * n_policies, device=model.device)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _sees_all(model: PreTrainedModel) -> bool:
    """Whether every layer sees all earlier tokens; only then is anything shared or remembered.

    Padding between a beginning and what follows it would count as tokens of a layer's window (or state).
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def shared_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, at least one of each left out; 0 where a layer does not see all."""
    if not _sees_all(model):
        return 0
    columns = zip(*prompts, strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(alike, min(map(len, prompts)) - 1)


def read_beginning(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], n_policies: int
) -> tuple[DynamicCache, int]:
    """Read what all prompts begin with, once per policy: a cache of n_policies rows, and how many tokens it holds.

    At least one token of every prompt is left. Gradients flow through the cache.
    """
    cache, shared = DynamicCache(config=model.config), shared_tokens(model, prompts)
    return (_read(model, prompts[0][:shared], cache, n_policies) if shared else cache), shared


@torch.inference_mode()
def read_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    n_policies: int,
    pad: int,
    *,
    room: int = 0,
    remembered: DynamicCache | None = None,
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Read each distinct prompt once per policy, and what all begin with once per policy if it is worth a pass.

    Args:
        room: how many tokens will follow.
        remembered: the first tokens of all prompts, in one row, if they were read before (`Memory`); it stays as it is.

    Returns:
        Logits of the next token (rows, vocabulary), the cache and the attention mask (rows, longest prompt) of
        n_policies * len(prompts) rows, policy by policy; padding is on the left, after what all begin with.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    cache = remembered or DynamicCache(config=model.config)
    shared, more = cache.get_seq_length(), shared_tokens(model, distinct)
    if (more - shared) * (len(distinct) - 1) * n_policies > _WORTH_READING:
        if shared:
            cache = with_room(cache, 1, more - shared)
        cache, shared = _read(model, distinct[0][shared:more], cache, n_policies), more
    ids, rest = left_pad([prompt[shared:] for prompt in distinct] * n_policies, pad, model.device)
    if shared:
        cache = with_room(cache, len(distinct), ids.shape[1] + room)
    mask = torch.cat([rest.new_ones(len(rest), shared), rest], dim=-1)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask)[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    if len(distinct) < len(prompts):
        places = [distinct.index(tuple(prompt)) for prompt in prompts]
        rows = torch.tensor([p * len(distinct) + i for p in range(n_policies) for i in places], device=model.device)
        cache.batch_select_indices(rows)
        logits, mask = logits[rows], mask[rows]
    if not shared and _sees_all(model):
        cache = with_room(cache, 1, room)
    return logits, cache, mask


def with_room(cache: DynamicCache, repeats: int, room: int) -> DynamicCache:
    """A copy with every row `repeats` times in a row, and with room for so many more tokens."""
    result = copy.copy(cache)
    result.layers = [_RoomyLayer(layer, repeats, room) for layer in cache.layers]
    return result


@final
class _RoomyLayer(DynamicLayer):
    """A copy of one layer's keys and values with room for the tokens to come: a pass writes its own, moves nothing."""

    def __init__(self, layer: DynamicLayer, repeats: int, room: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self._all = []
        for states in (layer.keys, layer.values):
            rows, heads, length, width = states.shape
            copied = states.new_empty(rows, repeats, heads, length + room, width)
            copied[:, :, :, :length] = states.unsqueeze(1)
            self._all.append(copied.flatten(0, 1))
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (states[:, :, :length] for states in self._all)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        for states, new in zip(self._all, (key_states, value_states), strict=True):
            states[:, :, begin:end] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._all = [states[indices] for states in self._all]
        self._show(self.keys.shape[-2])


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
    remembered: DynamicCache | None = None,
) -> list[list[int]]:
    """Sample (or, without uniforms, take the most likely) continuations of the prompts by every policy.

    Rows are n_policies times the prompts, policy by policy. Rows that have ended leave the batch, in step over the
    policies.

    Args:
        prompts: token ids; padded here on the left.
        uniforms: (rows, max_new_tokens) numbers in [0, 1), or None for greedy decoding.
        remembered: what all prompts begin with, if it was read before (`Memory`).

    Returns:
        Token ids per row, ending with an end token or at the limit.
    """
    device = model.device
    ends = torch.tensor(end_tokens, device=device)
    if uniforms is not None and device.type != "mps":  # Apple's GPU has no float64: there the CPU samples
        uniforms = uniforms.to(device)
    logits, cache, mask = read_prompts(
        model, prompts, n_policies, end_tokens[0], room=max_new_tokens - 1, remembered=remembered
    )
    position_ids = mask.sum(-1, keepdim=True) - 1
    rows = torch.arange(len(mask), device=device)
    ended = torch.zeros(len(mask), dtype=torch.bool, device=device)
    sampled = torch.full((len(mask), max_new_tokens), end_tokens[0], device=device)
    for step in range(max_new_tokens):
        token = sample(logits, None if uniforms is None else uniforms[rows.to(uniforms.device), step], temperature)
        sampled[rows, step] = token
        ended = ended | torch.isin(token, ends)
        most = int((~ended).view(n_policies, -1).sum(-1).max())  # rows that a policy still has to go on with
        if most == 0 or step + 1 == max_new_tokens:
            break
        if most <= _WORTH_LEAVING * len(rows) / n_policies:
            order = ended.view(n_policies, -1).byte().argsort(dim=-1, stable=True)[:, :most]
            kept = (order + torch.arange(0, len(rows), len(rows) // n_policies, device=device).unsqueeze(-1)).flatten()
            cache.batch_select_indices(kept)
            rows, ended, token, mask, position_ids = (x[kept] for x in (rows, ended, token, mask, position_ids))
        position_ids = position_ids + 1
        mask = torch.cat([mask, torch.ones_like(position_ids)], dim=-1)
        logits = model(
            input_ids=token.unsqueeze(-1),
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    return [_until_end(row, set(end_tokens)) for row in sampled.tolist()]


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
