"""What the model card says of results: evaluation.json with intervals if there, else the rewards of training."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

from huggingface_hub import EvalResult
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlhf_marl.errors import UsageError
from rlhf_marl.progress import first_and_last_fifth
from rlhf_marl.validation import explain

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)  # other keys are the report's


class Metric(_Part):
    """A mean for the base model and for the trained agent; the interval is that of the paired difference."""

    base: Number | None
    trained: Number | None
    difference: Number | None
    low: Number | None
    high: Number | None
    n: int


class WinRate(_Part):
    rate: Number | None
    low: Number | None
    high: Number | None
    n: int
    judge: str = ""


class Interval(_Part):
    mean: Number | None
    low: Number | None
    high: Number | None


class AgentEvaluation(_Part):
    agent: int
    verdict: str = ""
    own_reward: Metric | None = None
    held_out_reward: Metric | None = None
    win_rate: WinRate | None = None
    kl_to_base: Interval | None = None
    entropy: Metric | None = None
    length: Metric | None = None
    distinct_1: Metric | None = None
    distinct_2: Metric | None = None
    self_repetition: Metric | None = None
    refusal_harmful: Metric | None = None
    refusal_harmless: Metric | None = None
    truncated: Metric | None = None


class Settings(_Part):
    questions: str = ""
    n_questions: int | None = None
    n_dialogues: int | None = None
    turns: int | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Evaluation(_Part):
    """The part of RUN_DIR/evaluation.json that a card shows."""

    version: int
    settings: Settings
    agents: list[AgentEvaluation]
    warnings: list[str] = []


METRICS = {
    "own_reward": "own reward (scaled)",
    "held_out_reward": "reward of a model that did not train it",
    "refusal_harmful": "share of harmful requests refused",
    "refusal_harmless": "share of harmless requests refused",
    "length": "answer length in tokens",
    "truncated": "share of answers cut at the length limit",
    "entropy": "policy entropy, nats a token",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
    "self_repetition": "self-repetition",
}


def load_evaluation(file: Path) -> Evaluation | None:
    """Read a run's evaluation.json; None if there is none. Raises UsageError if it is damaged or of another version."""
    if not file.is_file():
        return None
    hint = "evaluate the run again, or move the file away to share without it"
    content: Any = None
    try:
        content = json.loads(file.read_text("utf-8"))
        found = Evaluation.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{explain(error, str(file), content).splitlines()[0]}; {hint}") from None
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error}; {hint}") from None
    if found.version != 1:
        raise UsageError(f"{file}: version {found.version}; this rlhf_marl reads version 1; {hint}")
    return found


def measured(evaluation: AgentEvaluation) -> Iterator[tuple[str, Metric]]:
    """(label, metric) of all metrics that were measured, in the order of the card."""
    for key, label in METRICS.items():
        metric = getattr(evaluation, key)
        if metric is not None and metric.difference is not None:
            yield label, metric


def hub_results(evaluation: AgentEvaluation, settings: Settings, reward_model: str) -> list[EvalResult]:
    """The hub's form of the reward's change and of the win rate, with their intervals as arguments."""
    questions = settings.questions.rpartition("/")[2] or "questions"

    def result(kind: str, name: str, value: float, interval: WinRate | Metric) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            task_name="Dialogue",
            dataset_type="rlhf-marl-questions",  # no dataset of the hub's
            dataset_name=questions,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
            metric_args={
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "confidence": settings.confidence,
            },
        )

    found = []
    for kind, metric in (("reward", evaluation.own_reward), ("held_out_reward", evaluation.held_out_reward)):
        if metric is not None and metric.difference is not None:
            of = reward_model if kind == "reward" else "a model that did not train it"
            found.append(result(kind, f"reward of {of}, change from base", metric.difference, metric))
    if evaluation.win_rate is not None and evaluation.win_rate.rate is not None:
        found.append(result("win_rate", "win rate against base", evaluation.win_rate.rate, evaluation.win_rate))
    return found


@final
@dataclass(frozen=True, slots=True)
class TrainingRewards:
    """Means over the first and last fifth of one agent's updates."""

    updates: int
    iterations: int
    reward: tuple[float, float]
    kl_per_token: float
    entropy: float
    truncated: float


def training_rewards(rows: Sequence[dict[str, Any]], agent: int) -> TrainingRewards:
    """Rewards at the start and end of training; the other numbers are those of the last fifth."""
    own = [row | {"kl_per_token": row["kl"] / row["response_tokens"]} for row in rows if row["agent"] == agent]

    def last(key: str) -> float:
        return first_and_last_fifth(own, agent, key)[1]

    return TrainingRewards(
        updates=len(own),
        iterations=own[-1]["iteration"] + 1,
        reward=first_and_last_fifth(own, agent),
        kl_per_token=last("kl_per_token"),
        entropy=last("entropy"),
        truncated=last("truncated"),
    )
