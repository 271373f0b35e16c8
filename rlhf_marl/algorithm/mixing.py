"""Gossip: t multiplications by the consensus matrix; disagreement between agents."""

from typing import Protocol, final

import torch
from torch import Tensor


class Mixer(Protocol):
    """The only view that actors and critics have of the topology."""

    @property
    def own_weight(self) -> Tensor:
        """(A^t)_ii of the agents of this process: (..., n_agents)."""
        ...

    def mix(self, values: Tensor) -> Tensor:
        """Algorithm 2, line 12: W_K = A^t Ŵ for the rows of this process's agents: (..., n_agents, n_values)."""
        ...


@final
class MatrixMixer:
    """All agents in one process: one product with A^t.

    Attributes:
        power: A^t, (..., n_agents, n_agents) float64.
    """

    def __init__(self, matrix: Tensor, rounds: int) -> None:
        """matrix: A, (..., n_agents, n_agents). Raises ValueError for negative rounds."""
        self.power = consensus_power(matrix, rounds)

    @property
    def own_weight(self) -> Tensor:
        return self.power.diagonal(dim1=-2, dim2=-1)

    def mix(self, values: Tensor) -> Tensor:
        return gossip(self.power, values)


def consensus_power(matrix: Tensor, rounds: int) -> Tensor:
    """A^t, (..., n, n) float64; 0 rounds give the identity. Raises ValueError for negative rounds."""
    if rounds < 0:
        raise ValueError(f"gossip_rounds: {rounds} is negative; 0 means no consensus")
    return torch.linalg.matrix_power(matrix.double(), rounds)


def gossip(power: Tensor, values: Tensor) -> Tensor:
    """A^t values, in the values' dtype and on their device. values: (..., n_agents, n_values)."""
    return power.to(values) @ values


def disagreement(values: Tensor) -> Tensor:
    """Root mean square over agents of the distance to their mean: (..., n_agents, n_values) -> (...)."""
    distance = values - values.mean(-2, keepdim=True)
    return distance.square().sum(-1).mean(-1).sqrt()


def gossip_bytes(adjacency: Tensor, n_values: int, rounds: int, bytes_per_value: int = 4) -> int:
    """Bytes sent by all agents together: in each round, every agent sends its values to every neighbour."""
    return int(adjacency.sum()) * n_values * rounds * bytes_per_value
