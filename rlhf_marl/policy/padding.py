"""Padded batches of token ids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def left_pad(sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (rows, longest), with the padding on the left."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """(rows, length) position of each token among its row's real tokens; padding gets 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def right_pad(
    responses: Sequence[Sequence[Any]], pad: float, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Response ids (or per-token numbers) and mask, both (rows, longest), with the padding on the right."""
    longest = max(map(len, responses))
    tokens = torch.tensor([[*r, *[pad] * (longest - len(r))] for r in responses], dtype=dtype, device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in responses], device=device)
    return tokens, mask
