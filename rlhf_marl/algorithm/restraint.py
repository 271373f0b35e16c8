"""Restraint of the actors: weights of the KL penalty and of the entropy bonus, which adapt for each agent."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

_FALL, _RISE = 0.2, 0.5  # largest errors below and above the target; Ziegler et al. have 0.2 for both
_LOWEST, _HIGHEST = 0.1, 100.0  # the coefficient's range, in units of its start
_LARGEST_MULTIPLIER = 1.0


@final
class KlCoefficient:
    """β of each agent's KL penalty. With a target it adapts after every update (Ziegler et al. 2019, section 2.2).

        e = clip(KL / target - 1, -0.2, 0.5),  β ← β (1 + gain e)

    KL is in nats per answer token, because the penalty's purpose, to stay near the base model, does not depend on how
    long the answers are. β stays between a tenth and a hundred times its start: at first KL is 0 and β falls, and it
    must be back when it is needed. For the same reason it rises faster than it falls.

    Attributes:
        values: β, (n_agents,) on the CPU.
    """

    def __init__(
        self, n_agents: int, start: float, target: float | None, gain: float, dtype: torch.dtype = torch.float32
    ) -> None:
        """target: nats per answer token; None keeps β at its start."""
        self.values = torch.full((n_agents,), start, dtype=dtype)
        self._start, self._target, self._gain = start, target, gain

    def update(self, kl: Tensor, usable: Tensor) -> None:
        """Adapt the usable agents' β to their measured KL, in nats per answer token; both (n_agents,)."""
        if self._target is None:
            return
        kl, usable = kl.cpu(), usable.cpu()
        error = (kl / self._target - 1).clamp(-_FALL, _RISE)
        adapted = (self.values * (1 + self._gain * error)).clamp(self._start * _LOWEST, self._start * _HIGHEST)
        self.values = torch.where(usable & kl.isfinite(), adapted, self.values)

    def state_dict(self, agent: int) -> dict[str, Tensor]:
        """One agent's β; empty if it does not adapt."""
        return {} if self._target is None else {"value": self.values[agent]}

    def load_state_dict(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises KeyError if it is missing."""
        if self._target is not None:
            self.values[agent] = state["value"]


@final
class EntropyCoefficient:
    """η of each agent's entropy bonus, which holds the policy's entropy H in a band: 0 until H leaves it.

    Projected dual ascent on low ≤ H ≤ high, as SAC's temperature does it for the lower bound alone (Haarnoja et al.
    2018, "Soft Actor-Critic Algorithms and Applications", Eq. 18), with a multiplier from 0 to 1 for each bound:

        μ_low ← μ_low + step_size (low - H),  μ_high ← μ_high + step_size (H - high),  η = μ_low - μ_high

    Outside the band a multiplier grows with the distance and the time; inside it shrinks back to 0. η > 0 is a bonus
    for entropy, η < 0 a penalty.

    Attributes:
        multipliers: μ_low and μ_high, (n_agents, 2) on the CPU.
    """

    def __init__(
        self, n_agents: int, band: Sequence[float] | None, step_size: float, dtype: torch.dtype = torch.float32
    ) -> None:
        """band: (low, high) in nats per token; None keeps η at 0."""
        self.multipliers = torch.zeros(n_agents, 2, dtype=dtype)
        self._band, self._step_size = band, step_size

    @property
    def values(self) -> Tensor:
        """η, (n_agents,)."""
        return self.multipliers[:, 0] - self.multipliers[:, 1]

    def update(self, entropy: Tensor, usable: Tensor) -> None:
        """Adapt the usable agents' multipliers to their measured entropy, in nats per token; both (n_agents,)."""
        if self._band is None:
            return
        entropy, usable = entropy.cpu(), usable.cpu()
        low, high = self._band
        outside = torch.stack([low - entropy, entropy - high], dim=-1)
        adapted = (self.multipliers + self._step_size * outside).clamp(0.0, _LARGEST_MULTIPLIER)
        self.multipliers = torch.where((usable & entropy.isfinite()).unsqueeze(-1), adapted, self.multipliers)

    def state_dict(self, agent: int) -> dict[str, Tensor]:
        """One agent's multipliers; empty without a band."""
        return {} if self._band is None else {"multipliers": self.multipliers[agent]}

    def load_state_dict(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Raises KeyError if it is missing."""
        if self._band is not None:
            self.multipliers[agent] = state["multipliers"]
