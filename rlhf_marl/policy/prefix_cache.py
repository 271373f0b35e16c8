"""Prefill of prompts into a key-value cache; shared prefixes are read once."""

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf_marl.policy.padding import left_pad, positions

# A shared prefix gets its own forward pass if that saves more tokens than this.
_WORTH_READING = 64


@final
class PrefixCache:
    """Key-value caches of prefixes that a frozen model reads repeatedly, such as a task's worked examples.

    A prefix is read in the same pieces whether cached or not, so results do not depend on the cache's history.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._caches: dict[tuple[int, ...], DynamicCache] = {}

    @torch.inference_mode()
    def read(self, model: PreTrainedModel, tokens: Sequence[int]) -> DynamicCache | None:
        """Prefix cache of one row for these tokens. None if some layer does not attend to all earlier tokens."""
        if not sees_all(model):
            return None
        key = tuple(tokens)
        cache = self._caches.pop(key, None) or extend(model, [key], DynamicCache(config=model.config))
        self._caches[key] = cache  # most recently used last
        if len(self._caches) > self._most:
            del self._caches[next(iter(self._caches))]
        return cache


def extend(model: PreTrainedModel, rows: Sequence[Sequence[int]], cache: DynamicCache) -> DynamicCache:
    """Extend the cache by equally long rows of tokens. No logits are computed; gradients flow through the cache."""
    ids = torch.tensor([list(tokens) for tokens in rows], device=model.device)
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def sees_all(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier tokens; only then are prefixes shared or cached.

    Otherwise padding between the prefix and the rest would count as tokens in a layer's window (or state), or as
    distance in models that `no_gaps` marks.
    """
    return not getattr(model, "no_gaps", False) and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers
    )


def shared_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[Sequence[int]]]) -> int:
    """Length of the prefix that every policy's prompts share, prompts[policy][row], leaving at least one token of each.

    Two policies may begin with different prefixes; the length is the same for all. 0 unless `sees_all`.
    """
    if not sees_all(model):
        return 0
    return min(_alike(of_policy) for of_policy in prompts)


def _alike(prompts: Sequence[Sequence[int]]) -> int:
    columns = zip(*prompts, strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(alike, min(map(len, prompts)) - 1)


def by_policy(rows: Sequence[Sequence[int]], n_policies: int) -> list[Sequence[Sequence[int]]]:
    """Rows that are ordered policy by policy, as [policy][row]."""
    each = len(rows) // n_policies
    return [rows[begin : begin + each] for begin in range(0, len(rows), each)]


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    n_policies: int,
    pad: int,
    *,
    room: int = 0,
    cached_prefix: DynamicCache | None = None,
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Prefill each distinct prompt once per policy, and a shared prefix once per policy if that saves enough.

    Args:
        prompts: token ids of every row, policy by policy.
        room: capacity to reserve for the tokens that will follow.
        cached_prefix: one-row cache of a prefix of all prompts; it is not modified.

    Returns:
        Logits of the next token (rows, vocabulary), the cache and the attention mask (rows, longest prompt). Padding is
        on the left, after the shared prefix.
    """
    asked = list(zip(*(map(tuple, of_policy) for of_policy in by_policy(prompts, n_policies)), strict=True))
    distinct = list(dict.fromkeys(asked))  # what all policies are asked at the same place
    blocks = list(zip(*distinct, strict=True))  # [policy][distinct]
    cache = cached_prefix or DynamicCache(config=model.config)
    shared, more = cache.get_seq_length(), shared_tokens(model, blocks)
    if (more - shared) * (len(distinct) - 1) * n_policies > _WORTH_READING:
        if shared:
            cache = with_room(cache, 1, more - shared)
        cache, shared = extend(model, [block[0][shared:more] for block in blocks], cache), more
    ids, rest = left_pad([prompt[shared:] for block in blocks for prompt in block], pad, model.device)
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
    if len(distinct) < len(asked):
        places = [distinct.index(row) for row in asked]
        rows = torch.tensor([p * len(distinct) + i for p in range(n_policies) for i in places], device=model.device)
        cache.batch_select_indices(rows)
        logits, mask = logits[rows], mask[rows]
    if not shared and sees_all(model):
        cache = with_room(cache, 1, room)
    return logits, cache, mask


def with_room(cache: DynamicCache, repeats: int, room: int) -> DynamicCache:
    """A copy with every row repeated `repeats` times, and with capacity for `room` more tokens."""
    result = copy.copy(cache)
    result.layers = [_RoomyLayer(layer, repeats, room) for layer in cache.layers]
    return result


@final
class _RoomyLayer(DynamicLayer):
    """A copy of one layer's keys and values with spare capacity: new tokens are written in place, without copies."""

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
