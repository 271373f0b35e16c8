"""The chain whose values a critic can learn: positions are redrawn with a constant probability.

A critic cannot see the age of an episode, so the probability is 1/10 for periodic resets; it is 1 - γ for the restart
kernel, for which this is exact.
"""

from dataclasses import dataclass

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE


@dataclass(frozen=True, slots=True)
class Chain:
    """Coefficients of the TD target: E[target] = r + stay V(s') + leave V̄, V̄ the mean of V over fresh positions."""

    stay: float
    leave: float


def chain(s: Setting) -> Chain:
    """The coefficients for a setting's reset and bootstrap."""
    rate = 1 - s.discount if s.reset == "restart_kernel" else 1 / EPISODE
    match s.bootstrap:
        case "reached":
            return Chain(s.discount, 0.0)
        case "redrawn":
            return Chain(s.discount * (1 - rate), s.discount * rate)
        case _:
            return Chain(s.discount * (1 - rate), 0.0)
