"""A decode step of a Llama-like model on a CPU: a straight line of few operations, instead of transformers' modules.

With few rows each of a step's thousands of small operations costs as much for being called as for its numbers. Here
layers that read the same input are one packed product (half_linear.py), whose adapters' A are one product too, and
attention of a single query is two products and a softmax. The sums are the modules' up to rounding.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from rlhf_marl.policy.adapters import StackedAdapters, StackedLinear
from rlhf_marl.policy.generation import DecodeStep, fill_absent, module_step
from rlhf_marl.policy.half_linear import MOST_ROWS, HalfLinear, multiply_together
from rlhf_marl.policy.llama_like import base_of, groups_of, head_size, is_llama_like, linears_of, norms_of


@final
@dataclass(frozen=True, slots=True)
class _Group:
    """Layers that read the same input, with the active agents' adapters.

    Attributes:
        a: the adapted layers' A side by side, (n_agents, in, rank of all); None if nobody's adapter is active.
        parts: for every adapted layer the columns of its output, its B (n_agents, rank, out), and its scaling.
    """

    linears: list[HalfLinear]
    a: Tensor | None
    parts: list[tuple[slice, Tensor, float]]

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, in) -> the layers' outputs side by side, (rows, sum of widths)."""
        y = multiply_together(self.linears, x)
        if self.a is None:
            return y
        low_rank = torch.bmm(x.view(len(self.a), -1, x.shape[-1]), self.a)
        of_agents, begin = y.view(len(self.a), -1, y.shape[-1]), 0
        for columns, b, scaling in self.parts:
            end = begin + b.shape[1]
            of_agents[..., columns].baddbmm_(low_rank[..., begin:end], b, alpha=scaling)
            begin = end
        return y


@final
@dataclass(frozen=True, slots=True)
class _Layer:
    """One transformer layer: its groups and the weights of its norms."""

    qkv: _Group
    output: _Group
    gate_up: _Group
    down: _Group
    first_norm: Tensor
    second_norm: Tensor


def has_straight_step(model: Any) -> bool:
    """Whether the straight line computes the model's forward pass, with or without adapters."""
    return is_llama_like(model) and all(
        type(linear) is HalfLinear for linear in (model.get_output_embeddings(), *linears_of(model))
    )


def decode_step(model: Any, adapters: StackedAdapters | None, agents: slice | None) -> DecodeStep:
    """The decode step of these agents' policies, or of the base model, with the adapters as they are now.

    It is the straight line for up to MOST_ROWS rows, where the model has one. Other steps go through transformers'
    modules.
    """
    by_modules = module_step(model)
    if not has_straight_step(model):
        return by_modules
    layers = []
    for layer in model.model.layers:
        qkv, output, gate_up, down = (_group(group, agents if adapters else None) for group in groups_of(layer))
        layers.append(_Layer(qkv, output, gate_up, down, *norms_of(layer)))

    def decode(token: Tensor, position: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        if len(token) > MOST_ROWS:
            return by_modules(token, position, mask, cache)
        return _logits(model, layers, token, position, mask, cache)

    return decode


def _group(parts: list[Any], agents: slice | None) -> _Group:
    linears = [base_of(part) for part in parts]
    adapted, begin = [], 0
    for part, linear in zip(parts, linears, strict=True):
        end = begin + linear.out_features
        if agents is not None and isinstance(part, StackedLinear):
            adapted.append((slice(begin, end), part))
        begin = end
    if not adapted:
        return _Group(linears, None, [])
    a = torch.cat([part.a.detach()[agents] for _, part in adapted], dim=-1)
    return _Group(linears, a, [(columns, part.b.detach()[agents], part.scaling) for columns, part in adapted])


def _logits(
    model: Any, layers: list[_Layer], token: Tensor, position: Tensor, mask: Tensor, cache: DynamicCache
) -> Tensor:
    config, size = model.config, head_size(model)
    rows, epsilon = len(token), config.rms_norm_eps
    n_heads, n_shared = config.num_attention_heads, config.num_key_value_heads
    hidden = model.model.embed_tokens(token.squeeze(1))
    cosine, sine = (table.view(rows, 1, 2, size // 2) for table in model.model.rotary_emb(hidden, position))
    sine = torch.cat([-sine[:, :, :1], sine[:, :, 1:]], dim=2)
    hidden_places = torch.zeros(mask.shape).masked_fill_(mask == 0, -torch.inf).repeat_interleave(n_shared, 0)
    after = [layer.first_norm for layer in layers[1:]] + [model.model.norm.weight]
    x = _norm(hidden, layers[0].first_norm, epsilon)
    for number, (layer, next_norm) in enumerate(zip(layers, after, strict=True)):
        heads = layer.qkv(x).view(rows, n_heads + 2 * n_shared, size)
        turned = heads[:, : n_heads + n_shared].unflatten(-1, (2, size // 2))
        turned = torch.addcmul(turned * cosine, turned.flip(2), sine).flatten(2)
        keys, values = cache.update(
            turned[:, n_heads:].unsqueeze(2), heads[:, n_heads + n_shared :].unsqueeze(2), number
        )
        queries = turned[:, :n_heads].reshape(rows * n_shared, -1, size)
        scores = torch.baddbmm(hidden_places.unsqueeze(1), queries, keys.flatten(0, 1).mT, alpha=size**-0.5)
        attended = torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(rows, -1)
        hidden += layer.output(attended)
        gate, up = layer.gate_up(_norm(hidden, layer.second_norm, epsilon)).chunk(2, dim=-1)
        hidden += layer.down(nn.functional.silu(gate).mul_(up))
        x = _norm(hidden, next_norm, epsilon)
    logits = model.get_output_embeddings()(x)
    fill_absent(model, logits)
    return logits


def _norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return nn.functional.rms_norm(hidden, weight.shape, weight, epsilon)
