"""Gossip: t multiplications by the consensus matrix; disagreement between agents."""

from typing import Protocol, final

import torch
from torch import Tensor


class Mixer(Protocol):
    """All that actors and critics see of the topology."""

    @property
    def own_share(self) -> float:
        """Weight of an agent's own reward in the objective: 1/N, the share of the team's mean; 1 without gossip."""
        ...

    def mix(self, values: Tensor) -> Tensor:
        """Algorithm 2, line 12: W_K = A^t Ŵ for the rows of this process's agents: (..., n_agents, n_values)."""
        ...


@final
class MatrixMixer:
    """All agents in one process: one product with A^t.

    Attributes:
        power: A^t, (..., n_agents, n_agents) float64.
        own_share: see `Mixer`.
    """

    def __init__(self, matrix: Tensor, rounds: int) -> None:
        """matrix: A, (..., n_agents, n_agents). Raises ValueError for negative rounds."""
        self.power = consensus_power(matrix, rounds)
        self.own_share = own_share(matrix.shape[-1], rounds)

    def mix(self, values: Tensor) -> Tensor:
        return gossip(self.power, values)


def own_share(n_agents: int, rounds: int) -> float:
    """1/N. Without gossip there is no team, so each agent's own reward has full weight."""
    return 1 / n_agents if rounds else 1.0


def consensus_power(matrix: Tensor, rounds: int) -> Tensor:
    """A^t, (..., n, n) float64; 0 rounds give the identity. Raises ValueError for negative rounds."""
    if rounds < 0:
        raise ValueError(f"gossip_rounds: {rounds} is negative; 0 means no consensus")
    return torch.linalg.matrix_power(matrix.double(), rounds)


def sufficient_rounds(matrix: Tensor, rounds: int, tolerance: float = 1e-6) -> int:
    """The fewest rounds whose A^t equals that of `rounds` within the tolerance, entry by entry. matrix: (n, n)."""
    power, wanted = torch.eye(len(matrix), dtype=torch.float64), consensus_power(matrix, rounds)
    for t in range(rounds):
        if (power - wanted).abs().max() <= tolerance:
            return t
        power = matrix.double() @ power
    return rounds


def gossip(power: Tensor, values: Tensor) -> Tensor:
    """A^t values, in the values' dtype and on their device. values: (..., n_agents, n_values)."""
    return power.to(values) @ values


def team_mean(values: Tensor) -> Tensor:
    """Mean over agents: (..., n_agents, n_values) -> (..., 1, n_values)."""
    return values.mean(-2, keepdim=True)


def disagreement(values: Tensor, mean: Tensor | None = None) -> Tensor:
    """Root mean square over agents of the distance to the team's mean: (..., n_agents, n_values) -> (...).

    mean: (..., 1, n_values), if not all of the team's agents are here.
    """
    distance = values - (team_mean(values) if mean is None else mean)
    return distance.square().sum(-1).mean(-1).sqrt()


def gossip_bytes(adjacency: Tensor, message: int, rounds: int) -> int:
    """Bytes sent by all agents together: in each round, every agent sends `message` bytes to every neighbour."""
    return int(adjacency.sum()) * message * rounds
