"""Critic input: padded token embeddings, mapped by the fixed random H of Eq. (5).

x holds the frozen base model's input embeddings of the state's tokens and, for a Q critic, of every agent's response.
Each part is zero-padded on the right to its fixed length; parts are concatenated, flattened and scaled to ||x||_2 = 1.
The full H (m x length * embedding) would be large, so it is factorised: one fixed random map for each token's
embedding, then one over positions. The first factor is precomputed for the whole vocabulary as a lookup table.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class CriticFeatures:
    """Fixed map from token ids to x^(0) = H x, the same for all agents."""

    def __init__(
        self,
        embeddings: Tensor,
        *,
        part_lengths: Sequence[int],
        token_features: int,
        width: int,
        generator: torch.Generator,
    ) -> None:
        """
        Args:
            embeddings: (vocabulary, e); features are float64 if they are, else float32.
            part_lengths: tokens kept of each part (the state, then responses).
        """
        self.part_lengths = tuple(part_lengths)
        vocabulary, e = embeddings.shape
        # Var = 1/p keeps the norm in expectation, so that H's product has entries of variance 2 on unit inputs.
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        token_map = (torch.randn(e, token_features, generator=generator) / token_features**0.5).to(dtype)
        inputs = sum(part_lengths) * token_features
        position_map = (torch.randn(inputs, width, generator=generator) * 2**0.5).to(dtype)
        # An extra row of zeros for the padding token.
        table = torch.zeros(vocabulary + 1, token_features, dtype=dtype)
        squares = torch.zeros(vocabulary + 1, dtype=dtype)
        for rows in torch.arange(vocabulary).split(8192):
            block = embeddings[rows.to(embeddings.device)].to("cpu", dtype)
            table[rows] = block @ token_map
            squares[rows] = block.square().sum(-1)
        self._table = table.to(embeddings.device)
        self._squares = squares.to(embeddings.device)
        self._position_map = position_map.to(embeddings.device)

    def __call__(self, *parts: Sequence[Sequence[int]]) -> Tensor:
        """parts[p][row]: token ids, one part per entry of part_lengths -> (rows, width)."""
        padding = self._table.shape[0] - 1
        rows = [
            [
                token
                for part, length in zip(row, self.part_lengths, strict=True)
                for token in (*part[:length], *(padding for _ in range(length - len(part))))
            ]
            for row in zip(*parts, strict=True)
        ]
        ids = torch.tensor(rows, device=self._table.device)
        norm = self._squares[ids].sum(-1, keepdim=True).sqrt()
        return (self._table[ids].flatten(1) / norm) @ self._position_map
