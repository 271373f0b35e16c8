"""Gossip: t multiplications by the consensus matrix, applied once as a power."""

import torch
from torch import Tensor

from rlhf_marl.perf.stopwatch import stage


def consensus_power(matrix: Tensor, rounds: int) -> Tensor:
    """A^t_gossip, (..., n, n) float64; 0 rounds give the identity. Raises ValueError for negative rounds."""
    if rounds < 0:
        raise ValueError(f"gossip_rounds: {rounds} is negative; 0 means no consensus")
    return torch.linalg.matrix_power(matrix.double(), rounds)


def gossip(power: Tensor, values: Tensor) -> Tensor:
    """Algorithm 2, line 12: W_K = A^t Ŵ. values: (..., n_agents, n_params); keeps dtype and device."""
    with stage("gossip"):
        return power.to(values) @ values


def disagreement(values: Tensor) -> Tensor:
    """Root mean square over agents of the distance to their mean: (..., n_agents, n_params) -> (...)."""
    distance = values - values.mean(-2, keepdim=True)
    return distance.square().sum(-1).mean(-1).sqrt()


def gossip_bytes(adjacency: Tensor, n_values: int, rounds: int, bytes_per_value: int = 4) -> int:
    """Bytes that all agents together send: in each round everyone sends its values to every neighbour."""
    return int(adjacency.sum()) * n_values * rounds * bytes_per_value
