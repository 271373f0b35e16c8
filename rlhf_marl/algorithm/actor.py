"""The actor's baseline and step: leave-one-out, and line 17 of Algorithm 1."""

import torch
from torch import Tensor


def leave_one_out(signal: Tensor, group: int) -> Tensor:
    """Subtract from each entry the mean of the others of its group; groups of one are unchanged.

    Samples are independent, so the baseline does not depend on the action whose signal it corrects.

    Args:
        signal: (..., B).
        group: size of a group of consecutive entries; divides B.
    """
    if group == 1:
        return signal
    grouped = signal.unflatten(-1, (-1, group))
    grouped = grouped - grouped[..., :1]  # equal signals become exact zeros, not rounding noise
    return (grouped - (grouped.sum(-1, keepdim=True) - grouped) / (group - 1)).flatten(-2)


def normalised_step(parameters: Tensor, direction: Tensor, step_size: float) -> Tensor:
    """Line 17: θ + α d / ‖d‖ per agent, on (..., n_agents, n_params). A zero or non-finite d leaves θ unchanged."""
    largest = direction.abs().amax(-1, keepdim=True)
    direction = direction / largest  # squares of a tiny d would underflow in the norm
    step = step_size * direction / direction.norm(dim=-1, keepdim=True)
    return torch.where(largest.isfinite() & (largest > 0), parameters + step, parameters)
