"""What the kernels of decoder_kernels.py compute, in plain torch: their definition, and what runs without a GPU.

`y` is a product of `Fused.product`: the layers' outputs (rows, out), and behind them x A of all agents and layers,
(n_agents, n_parts, rank). Rows belong to the agents of `active`, in order and equally many each; none if it is empty.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rlhf_marl.policy.decoder import Fused


def adapted(y: Tensor, fused: "Fused", active: range) -> list[Tensor]:
    """Each layer's output with its rows' adapters, (rows, width)."""
    outputs = list(y[:, : sum(fused.widths)].split(fused.widths, dim=-1))
    if not active:
        return outputs
    n_agents, rank, out = fused.b.shape
    low = y[:, out : out + n_agents * len(fused.parts) * rank].view(len(y), n_agents, len(fused.parts), rank)
    agents = torch.tensor(active, device=y.device).repeat_interleave(len(y) // len(active))
    low = low[torch.arange(len(y), device=y.device), agents]
    b = fused.b[agents].split(fused.widths, dim=-1)
    return [
        output + torch.bmm(low[:, g : g + 1], b_of_part).squeeze(1)
        for g, (output, b_of_part) in enumerate(zip(outputs, b, strict=True))
    ]


def norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root mean square norm, (rows, width)."""
    values = hidden.float()
    return weight * (values * torch.rsqrt(values.square().mean(-1, keepdim=True) + epsilon)).to(hidden.dtype)


def add_and_norm(hidden: Tensor, y: Tensor, fused: "Fused", active: range, weight: Tensor, epsilon: float) -> Tensor:
    """Add the layer's output to `hidden`, in place; returns the norm of the sum."""
    hidden += adapted(y, fused, active)[0]
    return norm(hidden, weight, epsilon)


def gate(y: Tensor, fused: "Fused", active: range) -> Tensor:
    """silu(gate) * up."""
    gates, up = adapted(y, fused, active)
    return nn.functional.silu(gates) * up


def rotate_and_store(
    y: Tensor,
    fused: "Fused",
    active: range,
    rotation: tuple[Tensor, Tensor],
    position: Tensor,
    slot: Tensor,
    keys: Tensor,
    values: Tensor,
    n_heads: int,
) -> Tensor:
    """Rotate queries and keys to their positions, and write keys and values into the cache.

    keys, values: (rows, heads, capacity, size).

    Returns:
        The queries (rows, n_heads, size).
    """
    size = keys.shape[-1]
    q, k, v = (part.unflatten(-1, (-1, size)) for part in adapted(y, fused, active))
    cosine, sine = (table[position].unsqueeze(1) for table in rotation)
    q, k = (x * cosine + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1) * sine for x in (q, k))
    keys.index_copy_(2, slot, k.unsqueeze(2))
    values.index_copy_(2, slot, v.unsqueeze(2))
    return q


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, slot: Tensor) -> Tensor:
    """Attention of one query per row and head to the row's places up to `slot`: (rows, n_heads * size)."""
    rows, n_heads, size = queries.shape
    seen = mask & (torch.arange(mask.shape[1], device=mask.device) <= slot)
    grouped = queries.view(rows, keys.shape[1], -1, size)
    attended = nn.functional.scaled_dot_product_attention(grouped, keys, values, seen[:, None, None])
    return attended.reshape(rows, n_heads * size)
