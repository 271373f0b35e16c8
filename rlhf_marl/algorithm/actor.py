"""The actor's side of Algorithm 1: TD errors, the signal that weighs the score function, and line 17's step.

The paper's δ = Q(s, a) - r - γ Q(s', a') is right for the critic's descent and has the wrong sign for the actor's
ascent: the advantage is -δ. See docs/algorithm.md for the choice of signals.
"""

from typing import Literal

import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import gossip

SIGNALS = ("td_q_literal", "td_q", "td_v", "q_value", "counterfactual")
CREDITS = ("consensus", "local")


def critic_kind(signal: str) -> Literal["q", "v"]:
    """Which critic a signal needs."""
    return "v" if signal == "td_v" else "q"


def td_error(value: Tensor, reward: Tensor, next_value: Tensor, discount: Tensor) -> Tensor:
    """δ = Q(s, a) - r - γ Q(s', a'), the paper's sign. All (..., n_agents, batch)."""
    return value - reward - discount * next_value


def actor_signal(
    signal: str,
    credit: str,
    power: Tensor,
    *,
    value: Tensor,
    next_value: Tensor,
    reward: Tensor,
    discount: Tensor,
    counterfactual_value: Tensor | None = None,
) -> Tensor:
    """The scalar that weighs agent i's score function ∇log π^i: (..., n_agents, batch).

    Lines 12 to 15: every agent's TD error is gossiped with `power`; the batch takes the place of the M columns.

    Args:
        signal: td_q_literal: the gossiped δ (the paper's letter). td_q, td_v: minus the gossiped δ, of a Q or V critic.
            q_value: the agent's own Q (Remark 1), and counterfactual: Q minus `counterfactual_value`, its mean over the
            agent's own actions; both need no gossip.
        credit: consensus: as above. local: (A^t)_ii r^i + gossip(γ V(s') - V(s)), so r^i / N where gossip averages:
            given the state, the others' immediate rewards do not depend on agent i's action, so leaving them out keeps
            the mean gradient at lower variance.
        value, next_value, reward, discount: broadcast to (..., n_agents, batch); each agent's own.

    Raises:
        ValueError: unknown signal or credit, or local credit for a signal without an immediate reward.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal: {signal!r} is not an actor signal; choose {', '.join(SIGNALS)}")
    if credit not in CREDITS:
        raise ValueError(f"credit: {credit!r} is not a credit; choose {', '.join(CREDITS)}")
    if signal in ("q_value", "counterfactual"):
        if credit == "local":
            raise ValueError(f"credit: local needs a signal with an immediate reward; {signal} has none")
        if signal == "q_value":
            return value
        if counterfactual_value is None:
            raise ValueError("signal: counterfactual needs actions that can be enumerated")
        return value - counterfactual_value
    if credit == "consensus":
        advantage = -gossip(power, td_error(value, reward, next_value, discount))
    else:
        advantage = power.diagonal(dim1=-2, dim2=-1).to(reward).unsqueeze(-1) * reward + gossip(
            power, discount * next_value - value
        )
    return -advantage if signal == "td_q_literal" else advantage


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
