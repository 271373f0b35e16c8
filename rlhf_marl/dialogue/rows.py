"""The lines of metrics.jsonl and dialogues.jsonl."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rlhf_marl.algorithm import gossip_bytes
from rlhf_marl.dialogue.rollout import Turn
from rlhf_marl.dialogue.system import DialogueSystem
from rlhf_marl.dialogue.update import Step, UpdateMetrics
from rlhf_marl.health import warnings_of

Row = dict[str, Any]


def metric_rows(
    system: DialogueSystem,
    steps: Sequence[Step],
    metrics: UpdateMetrics,
    iteration: int,
    updates: int,
    stages: dict[str, float],
) -> list[Row]:
    """One flat row per agent; means over the update's turns and dialogues unless the name says otherwise.

    `stages` is the wall time of each stage, in seconds.
    """
    turns = [step.turn for step in steps]
    disagreement = (metrics.critic.disagreement_before.item(), metrics.critic.disagreement_after.item())
    seconds = sum(stages.values())
    all_tokens = sum(len(r.tokens) for turn in turns for agent in turn.responses for r in agent)
    n_values = system.critic.network.n_params + sum(len(turn.states) for turn in turns)
    sent = gossip_bytes(system.topology.adjacency, n_values, system.config.topology.gossip_rounds)
    rows = []
    for agent in range(len(system.cards)):
        responses = [r for turn in turns for r in turn.responses[agent]]

        def mean(tensors: Sequence[Tensor], agent: int = agent) -> float:
            return torch.stack([tensor[agent] for tensor in tensors]).mean().item()

        rows.append(
            {
                "update": updates,
                "iteration": iteration,
                "turn": turns[-1].number,
                "agent": agent,
                "reward_model": system.cards[agent].name,
                "reward_raw": mean([turn.reward_raw for turn in turns]),
                "reward_scaled": mean([turn.reward_scaled for turn in turns]),
                "td_error": mean(metrics.td_error),
                "actor_signal": mean(metrics.signal),
                "actor_signal_positive": mean([(signal > 0).float() for signal in metrics.signal]),
                "critic_value": metrics.critic.value[agent].item(),
                "critic_magnitude": metrics.critic.magnitude[agent].item(),
                "critic_gradient_norm": metrics.critic.gradient_norm[agent].item(),
                "critic_projected": metrics.critic.projected[agent].item(),
                "critic_dead_units": metrics.dead_units[agent].item(),
                "critic_skipped": int(metrics.critic.skipped[agent]),
                "disagreement_before": disagreement[0],
                "disagreement_after": disagreement[1],
                "entropy": mean([s.entropy for s in metrics.statistics]),
                "kl": mean([s.kl for s in metrics.statistics]),
                "log_probability": mean([s.log_probability for s in metrics.statistics]),
                "response_tokens": sum(len(r.tokens) for r in responses) / len(responses),
                "truncated": sum(r.truncated for r in responses) / len(responses),
                "gradient_norm": metrics.gradient_norm[agent].item(),
                "actor_skipped": int(metrics.skipped[agent]),
                "controller_fallbacks": sum(map(sum, (turn.fallbacks for turn in turns))),
                "gossip_bytes": sent,
                "tokens_per_second": round(all_tokens / seconds, 3),
                "seconds": round(seconds, 4),
                "stage_seconds": {name: round(value, 4) for name, value in stages.items()},
            }
        )
    return [row | {"warnings": [kind for kind, _ in warnings_of(row, system.config)]} for row in rows]


def dialogue_rows(turn: Turn, iteration: int) -> Iterator[Row]:
    """One row per dialogue: what was asked, answered, scored and decided in this turn."""
    for b, dialogue in enumerate(turn.dialogues):
        yield {
            "iteration": iteration,
            "dialogue": dialogue,
            "turn": turn.number,
            "question": turn.questions[b],
            "prompt": turn.prompts[b],
            "responses": [asdict(agent[b]) for agent in turn.responses],
            "reward_raw": turn.reward_raw[:, b].tolist(),
            "reward_scaled": turn.reward_scaled[:, b].tolist(),
            "aggregate": turn.aggregates[b],
            "next_prompt": turn.next_prompts[b],
            "controller_fallback": turn.fallbacks[b],
        }
