"""One update: K critic steps, gossip of the critics and of the TD errors, one step of every actor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_marl.algorithm import (
    CriticMetrics,
    Transition,
    actor_signal,
    critic_kind,
    leave_one_out,
    normalised_step,
)
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.log_probabilities import Statistics, evaluate_responses
from rlhf_marl.training.system import DialogueSystem


@dataclass(frozen=True, slots=True)
class Step:
    """A transition whose next state (and, for a Q critic, next action) is known. B dialogues, N agents.

    features, next_features: (1, B, m) projected critic input of (s_k) or (s_k, a_k) and of its successor;
    discount: γ, or 0 where the target is the reward alone.
    """

    turn: Turn
    features: Tensor
    next_features: Tensor
    discount: float


@dataclass(frozen=True, slots=True)
class UpdateMetrics:
    """What one update did. `signal`, `td_error` and the statistics hold, per turn of the update, (N, B)."""

    critic: CriticMetrics
    td_error: list[Tensor]
    signal: list[Tensor]
    statistics: list[Statistics]
    gradient_norm: Tensor  # (N,) before clipping
    skipped: Tensor  # (N,) bool: the direction was not finite and the actor kept its weights
    dead_units: Tensor  # (N,) share of last-layer critic units that are off on the whole batch


def critic_features(system: DialogueSystem, turn: Turn) -> Tensor:
    """x^(0) of (s_k) or, for a Q critic, of (s_k, a_k^1, ..., a_k^N): (1, B, m)."""
    responses = [[r.tokens for r in agent] for agent in turn.responses]
    is_q = critic_kind(system.config.actor.signal) == "q"
    return system.features(turn.states, *(responses if is_q else [])).unsqueeze(0)


def update(system: DialogueSystem, steps: Sequence[Step]) -> UpdateMetrics:
    """Algorithm 2 on the update's turns, then Algorithm 1, lines 4 to 18, with M = len(steps)."""
    config, power = system.config, system.topology.power
    device = system.model.device
    transitions = [
        Transition(
            x0=step.features,
            reward=step.turn.reward_scaled.to(device),
            next_x0=step.next_features,
            discount=torch.full((1, 1), step.discount, device=device),
        )
        for step in steps
    ]
    with stage("critic"):
        critic = system.critic.update([transitions[k % len(steps)] for k in range(config.critic.steps)])
    td_errors, signals = [], []
    for transition in transitions:
        value, next_value = system.critic.value(transition.x0), system.critic.value(transition.next_x0)
        td_errors.append(value - transition.reward - transition.discount * next_value)
        signal = actor_signal(
            config.actor.signal,
            config.actor.credit,
            power,
            value=value,
            next_value=next_value,
            reward=transition.reward,
            discount=transition.discount,
        )
        signals.append(leave_one_out(signal) if config.actor.baseline == "leave_one_out" else signal)
    with stage("update"):
        system.adapters.parameters.grad.zero_()  # type: ignore[union-attr]
        statistics = [
            evaluate_responses(
                system.model,
                system.adapters,
                step.turn.states,
                [[r.tokens for r in agent] for agent in step.turn.responses],
                temperature=config.generation.temperature,
                pad=system.end_tokens[0],
                signal=signal,
                kl_coefficient=config.actor.kl_coefficient,
                memory=system.memory,
            )
            for step, signal in zip(steps, signals, strict=True)
        ]
        n_samples = sum(signal.shape[-1] for signal in signals)
        gradient_norm, skipped = _actor_step(system, n_samples)
    return UpdateMetrics(
        critic=critic,
        td_error=td_errors,
        signal=signals,
        statistics=statistics,
        gradient_norm=gradient_norm,
        skipped=skipped,
        dead_units=system.critic.network.dead_fraction(system.critic.weights, transitions[-1].x0),
    )


def _actor_step(system: DialogueSystem, n_samples: int) -> tuple[Tensor, Tensor]:
    """Line 17 or Adam, on each agent's own row. An agent whose direction is not finite keeps its weights."""
    actor, parameters = system.config.actor, system.adapters.parameters
    gradient = parameters.grad
    assert gradient is not None
    gradient /= n_samples
    norm = gradient.norm(dim=-1)
    skipped = ~norm.isfinite()
    gradient[skipped] = 0.0
    if system.optimizer is None:
        with torch.no_grad():
            parameters.copy_(normalised_step(parameters, -gradient, actor.step_size))
    else:
        if actor.max_gradient_norm is not None:
            gradient *= (actor.max_gradient_norm / norm.clamp_min(actor.max_gradient_norm)).nan_to_num().unsqueeze(-1)
        kept = parameters.detach()[skipped].clone()
        system.optimizer.step()
        parameters.data[skipped] = kept  # Adam's momentum would move it even with a zero gradient
    return norm, skipped
