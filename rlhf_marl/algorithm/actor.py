"""The actor's baseline and step: leave-one-out, and line 17 of Algorithm 1."""

import torch
from torch import Tensor


def leave_one_out(signal: Tensor) -> Tensor:
    """Subtract from each entry the mean of the others along the last axis; a single entry stays.

    The samples are drawn independently, so the baseline does not depend on the action it is subtracted from.
    """
    n = signal.shape[-1]
    if n == 1:
        return signal
    return signal - (signal.sum(-1, keepdim=True) - signal) / (n - 1)


def normalised_step(parameters: Tensor, direction: Tensor, step_size: float) -> Tensor:
    """Line 17: θ + α d / ‖d‖ per agent, on (..., n_agents, n_params). A zero or non-finite d leaves θ as it is."""
    largest = direction.abs().amax(-1, keepdim=True)
    direction = direction / largest  # a tiny d's squares would vanish in the norm
    step = step_size * direction / direction.norm(dim=-1, keepdim=True)
    return torch.where(largest.isfinite() & (largest > 0), parameters + step, parameters)
