"""The lines of metrics.jsonl and dialogues.jsonl."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor

from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.errors import UsageError
from rlhf_marl.training.health import warnings_of

Row = dict[str, Any]
Place = TypeVar("Place", bound=tuple[Any, ...])
_log = logging.getLogger("rlhf_marl")


def metric_rows(
    learned: Sequence[Row | None],
    turns: Sequence[Turn],
    reward_models: Sequence[str],
    config: Config,
    *,
    update: int,
    iteration: int,
    stages: dict[str, float],
) -> list[Row]:
    """One flat row per agent that took part: the team's metrics of the update, plus those that the loop measures.

    stages: wall time of each stage, in seconds.
    """
    seconds = sum(stages.values())
    all_tokens = sum(len(sample.tokens) for turn in turns for agent in turn.samples for sample in agent)
    rows = []
    for agent, (name, metrics) in enumerate(zip(reward_models, learned, strict=True)):
        if metrics is None:
            continue
        samples = [sample for turn in turns for sample in turn.samples[agent]]
        row = {
            "update": update,
            "iteration": iteration,
            "turn": turns[-1].number,
            "agent": agent,
            "name": config.names[agent],
            "reward_model": name,
            **metrics,
            "response_tokens": sum(len(sample.tokens) for sample in samples) / len(samples),
            "truncated": sum(not sample.finished for sample in samples) / len(samples),
            "controller_fallbacks": sum(merged.fallback for turn in turns for merged in turn.merged),
            "tokens_per_second": round(all_tokens / seconds, 3),
            "seconds": round(seconds, 4),
            "stage_seconds": {stage: round(value, 4) for stage, value in stages.items()},
        }
        rows.append(row | {"warnings": [kind for kind, _ in warnings_of(row, config)]})
    return rows


def dialogue_rows(turn: Turn, iteration: int) -> Iterator[Row]:
    """One row per dialogue: this turn's prompt, responses, scores and controller output."""
    for b, (dialogue, merged) in enumerate(zip(turn.dialogues, turn.merged, strict=True)):
        samples = [agent[b] for agent in turn.samples]
        yield {
            "iteration": iteration,
            "dialogue": dialogue,
            "turn": turn.number,
            "question": turn.questions[b],
            "prompt": turn.prompts[b],
            "responses": [{"tokens": s.tokens, "text": s.text, "truncated": not s.finished} for s in samples],
            "reward_raw": _numbers(turn.reward_raw[:, b]),
            "reward_scaled": _numbers(turn.reward_scaled[:, b]),
            "critic_value": None if turn.value is None else _numbers(turn.value[:, b]),
            "aggregate": merged.aggregate,
            "next_prompt": merged.next_prompt,
            "controller_fallback": merged.fallback,
        }


def _numbers(values: Tensor) -> list[float | None]:
    """One number per agent; None where it is not known."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def check_earlier(
    metrics: Sequence[Row],
    dialogues: Sequence[Row],
    validations: Sequence[Row] = (),
    *,
    config: Config,
    iterations: int,
    validated: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """Check that these are the rows of the run's first iterations. Warns of missing ones.

    validated: the team's mean in each validation, by iteration.

    Raises:
        UsageError: a row is from another run, is duplicated, or lacks a key that the summary or the report needs.
    """
    n_agents, updates = len(config.agents), config.turns // config.actor.turns_per_update
    wanted = {(u, u // updates, agent) for u in range(iterations * updates) for agent in range(n_agents)}
    wanted -= {place for row in metrics for place in _absent(row, n_agents)}
    _check_places("metrics.jsonl", metrics, wanted, lambda row: _metrics_place(row, config))
    wanted = {
        (i, i * config.dialogues + b, k)
        for i in range(iterations)
        for b in range(config.dialogues)
        for k in range(config.turns)
    }
    _check_places("dialogues.jsonl", dialogues, wanted, lambda row: (row["iteration"], row["dialogue"], row["turn"]))
    _check_places("validation.jsonl", validations, set(validated.items()), _validation_place)


def _absent(row: Row, n_agents: int) -> Iterator[tuple[int, int, int]]:
    """The places of agents that did not take part in a row's update."""
    present = row.get("present")
    if isinstance(present, list) and {type(row.get(key)) for key in ("update", "iteration")} == {int}:
        yield from ((row["update"], row["iteration"], agent) for agent in range(n_agents) if agent not in present)


def _check_places(name: str, rows: Sequence[Row], wanted: set[Place], place: Callable[[Row], Place]) -> None:
    missing = set(wanted)
    for number, row in enumerate(rows, 1):
        try:
            missing.remove(place(row))
        except (KeyError, TypeError, ValueError, ArithmeticError):
            raise UsageError(
                f"--resume: {name}: row {number} is damaged, duplicated or from another run: "
                f"{json.dumps(row)[:60]!r}; restore the file, or remove the line to continue without it"
            ) from None
    if missing:
        _log.warning(
            "%s: %d of the %d lines of finished iterations are missing; the run continues without them",
            *(name, len(missing), len(wanted)),
        )


def _metrics_place(row: Row, config: Config) -> tuple[int, int, int]:
    """(update, iteration, agent) of a row. Raises if the row lacks what the summary or the report needs."""
    str.encode(row["reward_model"])
    row["reward_scaled"] + 0.0
    list(warnings_of(row, config))
    return row["update"], row["iteration"], row["agent"]


def _validation_place(row: Row) -> tuple[int, float]:
    """(iteration, team's mean) of a row. Raises if the row lacks what the summary or the report needs."""
    if row["early_stop"] is not None:
        str.encode(row["early_stop"])
    return row["iteration"], row["team"]
