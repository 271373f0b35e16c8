"""Actor objectives: the weight of each token's score function ∇log π(a_t), from the actor signal.

An objective is a function (log π, log π_old, signal, *, clip_range) -> weight, all (rows, T): one response per row, 0
where it has ended. π is the policy being trained, π_old the one that sampled the response. To add an objective, add an
entry to OBJECTIVES. This module does not import torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Objective = Callable[..., "Tensor"]


def policy_gradient(log_probability: "Tensor", old: "Tensor", signal: "Tensor", *, clip_range: float = 0.2) -> "Tensor":
    """Algorithm 1, line 16: the signal, times the response's importance weight Π_t π(a_t) / π_old(a_t).

    The weight is 1 on-policy. It keeps the direction unbiased if the policy was updated after sampling: a Q critic's
    update waits for the next turn's responses, so from the second turn on the responses are one update old.
    """
    return signal * importance_weight(log_probability, old)


def importance_weight(log_probability: "Tensor", old: "Tensor") -> "Tensor":
    """π(a | s) / π_old(a | s) of whole responses: (rows, T) -> (rows, 1)."""
    return (log_probability - old).sum(-1, keepdim=True).exp()


def ppo_clip(log_probability: "Tensor", old: "Tensor", signal: "Tensor", *, clip_range: float = 0.2) -> "Tensor":
    """PPO's clipped surrogate min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = π / π_old (Schulman et al. 2017, Eq. 7).

    Its gradient is ρ A ∇log π where the minimum is ρ A, and zero where the ratio is clipped.
    """
    ratio = (log_probability - old).exp()
    clipped = ((signal > 0) & (ratio > 1 + clip_range)) | ((signal < 0) & (ratio < 1 - clip_range))
    return (ratio * signal).masked_fill(clipped, 0.0)


OBJECTIVES: dict[str, Objective] = {"policy_gradient": policy_gradient, "ppo_clip": ppo_clip}
