"""The lines of metrics.jsonl and dialogues.jsonl."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rlhf_marl.algorithm import gossip_bytes
from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.errors import UsageError
from rlhf_marl.training.health import warnings_of
from rlhf_marl.training.learner import Step, UpdateMetrics
from rlhf_marl.training.system import DialogueSystem

Row = dict[str, Any]
_log = logging.getLogger("rlhf_marl")


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


def check_earlier(metrics: Sequence[Row], dialogues: Sequence[Row], *, config: Config, iterations: int) -> None:
    """Are these the rows of a run's first iterations? A warning says how many are missing.

    Raises:
        UsageError: a row is none of them, there twice, or without what the summary and the report need.
    """
    n_agents, updates = len(config.agents), config.turns // config.actor.turns_per_update
    wanted = {(u, u // updates, agent) for u in range(iterations * updates) for agent in range(n_agents)}
    _check_places("metrics.jsonl", metrics, wanted, lambda row: _metrics_place(row, config))
    wanted = {
        (i, i * config.dialogues + b, k)
        for i in range(iterations)
        for b in range(config.dialogues)
        for k in range(config.turns)
    }
    _check_places("dialogues.jsonl", dialogues, wanted, lambda row: (row["iteration"], row["dialogue"], row["turn"]))


def _check_places(
    name: str, rows: Sequence[Row], wanted: set[tuple[int, int, int]], place: Callable[[Row], tuple[int, int, int]]
) -> None:
    missing = set(wanted)
    for number, row in enumerate(rows, 1):
        try:
            missing.remove(place(row))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise UsageError(
                f"--resume: {name}: row {number} is damaged, there twice or another run's: {json.dumps(row)[:60]!r}; "
                "restore the file, or remove the line to go on without it"
            ) from None
    if missing:
        _log.warning(
            "%s: %d of the %d lines of finished iterations are missing; the run goes on without them",
            *(name, len(missing), len(wanted)),
        )


def _metrics_place(row: Row, config: Config) -> tuple[int, int, int]:
    """Where the row belongs; raises one of the errors of damage if it cannot be shown."""
    str.encode(row["reward_model"])
    row["reward_scaled"] + 0.0
    list(warnings_of(row, config))
    return row["update"], row["iteration"], row["agent"]
