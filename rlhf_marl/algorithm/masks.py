"""Zero-sum masks over what is gossiped: two neighbours add a common random number with opposite signs.

The team's mean stays what it is, and single values are hidden; for what is not, and what a neighbour can still learn,
see docs/SECURITY.md. The rounds remove the masks as they remove disagreement, see `masks_left`.
"""

import math
from collections.abc import Container, Mapping, Sequence
from hashlib import blake2b, sha256, shake_256
from typing import final

import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import Mixer, consensus_power
from rlhf_marl.algorithm.topology import spectral_gap

Pair = tuple[int, int]
"""Two neighbours, the lower number first."""


def pair_keys(secret: str, adjacency: Tensor) -> dict[Pair, bytes]:
    """A key for every two neighbours, which does not tell those of other pairs. adjacency: (N, N) bool."""
    key = sha256(secret.encode()).digest()
    pairs = adjacency.triu(1).nonzero().tolist()
    return {(i, j): blake2b(f"{i} {j}".encode(), key=key, digest_size=32).digest() for i, j in pairs}


def keys_of(numbers: Container[int], keys: Mapping[Pair, bytes]) -> dict[Pair, bytes]:
    """The keys that these agents share with their neighbours."""
    return {(i, j): key for (i, j), key in keys.items() if i in numbers or j in numbers}


@final
class Masks:
    """The masks of this process's agents, which depend only on the pairs' keys, the update and the exchange."""

    def __init__(self, keys: Mapping[Pair, bytes], numbers: Sequence[int]) -> None:
        """
        Args:
            keys: of every pair that has one of these agents, and of no others.
            numbers: of the agents in this process.
        """
        self._keys, self._numbers = keys, list(numbers)
        self._pairs: list[Pair] | None = None
        self._place, self._exchanges = "", 0

    def begin(self, adjacency: Tensor, *place: int) -> None:
        """Start an update, or repeat it: the same pairs then have the same masks.

        Args:
            adjacency: who gossips with whom, (N, N) bool, the same in all processes: a mask that one end adds and the
                other does not would stay in the mean.
            place: numbers that name the update within the run.
        """
        self._pairs = [(i, j) for i, j in self._keys if adjacency[i, j]]
        self._place, self._exchanges = " ".join(map(str, place)), 0

    def draw(self, n_values: int) -> Tensor:
        """Sums of the pairs' standard normal numbers for the next exchange: (n_agents, n_values) float64.

        Raises:
            RuntimeError: no update has begun, so that the values would go out as they are.
        """
        if self._pairs is None:
            raise RuntimeError("masks are drawn before an update has begun")
        data = f"{self._place} {self._exchanges}".encode()
        self._exchanges += 1
        masks = torch.zeros(len(self._numbers), n_values, dtype=torch.float64)
        for pair in self._pairs:
            common = _normal(self._keys[pair] + data, n_values)
            for agent, sign in zip(pair, (1, -1), strict=True):
                if agent in self._numbers:
                    masks[self._numbers.index(agent)] += sign * common
        return masks


def _normal(key: bytes, n_values: int) -> Tensor:
    """Standard normal numbers that tell nothing of the key or of each other: (n_values,) float64.

    torch's generator has a seed of 32 bits on the CPU, which a neighbour could try out.
    """
    drawn = torch.frombuffer(bytearray(shake_256(key).digest(8 * n_values)), dtype=torch.int64)
    bits = (drawn >> 12) & (2**52 - 1)
    return torch.special.ndtri((bits.double() + 0.5) / 2**52)  # between 0 and 1, and neither of the two


@final
class MaskedMixer:
    """A mixer whose agents send masked values."""

    def __init__(self, mixer: Mixer, masks: Masks, size: float | Tensor, non_negative: bool | Tensor = False) -> None:
        """
        Args:
            size: standard deviation of a pair's number, for all values or for each, (n_values,).
            non_negative: which values are never negative, all or none or (n_values,) bool. What is left of the masks
                could make them so. Their mean is at least an agent's own value over N, and so is the result.
        """
        self._mixer, self._masks = mixer, masks
        self._size, self._non_negative = torch.as_tensor(size, dtype=torch.float64), torch.as_tensor(non_negative)

    @property
    def own_share(self) -> float:
        return self._mixer.own_share

    def mix(self, values: Tensor) -> Tensor:
        mixed = self._mixer.mix(values + (self._size * self._masks.draw(values.shape[-1])).to(values))
        return torch.where(self._non_negative.to(values.device), mixed.maximum(self.own_share * values), mixed)


def exposed(adjacency: Tensor, worker_of: Sequence[int]) -> list[int]:
    """Agents whose neighbours all live in one other worker, which knows all their masks.

    Args:
        adjacency: (N, N) bool.
        worker_of: the worker of each agent, which knows the masks of all its agents.
    """
    knowing = [{worker_of[j] for j in row.nonzero().flatten().tolist()} for row in adjacency]
    return [i for i, workers in enumerate(knowing) if len(workers) == 1 and worker_of[i] not in workers]


def masks_left(matrix: Tensor, adjacency: Tensor, rounds: int) -> float:
    """What is left of masks of size 1 after t rounds: root mean square over agents of (A^t masks). Both (N, N)."""
    pairs = adjacency.triu(1).nonzero()
    power = consensus_power(matrix, rounds)
    return float((power[:, pairs[:, 0]] - power[:, pairs[:, 1]]).square().sum().div(len(matrix)).sqrt())


def rounds_to_remove(matrix: Tensor, adjacency: Tensor, share: float) -> int:
    """Enough rounds to leave this much of masks of size 1."""
    start = masks_left(matrix, adjacency, 0)
    sigma = 1 - spectral_gap(matrix)
    return 1 if sigma * start <= share else math.ceil(math.log(share / start) / math.log(sigma))
