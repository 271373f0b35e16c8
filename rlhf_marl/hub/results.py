"""Results for the model card: evaluation.json with intervals if there is one, else the rewards of training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from huggingface_hub import EvalResult

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import NUMBERS, is_current, read_numbers
from rlhf_marl.evaluation.labels import LABELS
from rlhf_marl.evaluation.schema import Agent, Mean, Metric, Numbers, WinRate
from rlhf_marl.runs.handed_out import Choice
from rlhf_marl.runs.metrics import first_and_last_fifth, is_finite

Interval = Metric | WinRate | Mean


def load_evaluation(path: Path, which: Choice = "last") -> Numbers | None:
    """The evaluation of a run's best or last adapters; None if there is none.

    Raises:
        UsageError: it is damaged, of another version, of the other adapters, or of other agents than the run has now.
    """
    file = path / NUMBERS
    hint = "evaluate the run again, or move the file away to share without it"
    try:
        found, content = read_numbers(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}; {hint}") from None
    except UsageError as error:
        raise UsageError(f"{error}; {hint}") from None
    if found.settings.agents != which:
        raise UsageError(f"{file}: is of the run's {found.settings.agents} adapters, not of the {which} ones; {hint}")
    if not is_current(content["settings"], path):
        raise UsageError(f"{file}: belongs to other adapters or checkpoints than the run has now; {hint}")
    return found


def measured(evaluation: Agent) -> Iterator[tuple[str, Metric]]:
    """(label, metric) of all measured paired metrics, in the card's order."""
    for key, label in LABELS.items():
        if isinstance(metric := getattr(evaluation, key), Metric):
            yield label.long, metric


def hub_results(evaluation: Numbers, agent: Agent) -> list[EvalResult]:
    """Reward change and win rate in the hub's format, with intervals as metric_args."""
    settings, own, held_out, wins = evaluation.settings, agent.own_reward, agent.held_out_reward, agent.win_rate
    found: list[tuple[str, str, float, Metric | WinRate]] = [
        ("reward", f"reward by {agent.reward_model} (scaled), change from base", own.difference, own)
    ]
    if held_out is not None:
        judges = ", ".join(evaluation.held_out_judges)
        name = f"mean of held-out judges ({judges}) in standard deviations of their scores of base answers"
        found.append(("held_out_reward", f"{name}, change from base", held_out.difference, held_out))
    if wins is not None:
        found.append(("win_rate", f"win rate against base, by {wins.judge}", wins.rate, wins))
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Dialogue",
            dataset_type="rlhf-marl-questions",  # not a dataset on the Hub
            dataset_name=Path(settings.questions).name or "questions",
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
        for kind, name, value, interval in found
    ]


@final
@dataclass(frozen=True, slots=True)
class TrainingRewards:
    """Means over the first and last fifth of one agent's updates."""

    updates: int
    reward: tuple[float, float]
    kl_per_token: float
    entropy: float
    truncated: float


def training_rewards(rows: Sequence[dict[str, Any]], agent: int) -> TrainingRewards | None:
    """Rewards at the start and end of training; the other numbers are means over the last fifth.

    None if a row of this agent is damaged.
    """
    own = [row for row in rows if row["agent"] == agent]
    keys = ("reward_scaled", "kl", "response_tokens", "entropy", "truncated")
    if not own or not all(is_finite(row.get(key)) for row in own for key in keys):
        return None
    return TrainingRewards(
        updates=len(own),
        reward=first_and_last_fifth([row["reward_scaled"] for row in own]),
        kl_per_token=first_and_last_fifth([row["kl"] / max(row["response_tokens"], 1) for row in own])[1],
        entropy=first_and_last_fifth([row["entropy"] for row in own])[1],
        truncated=first_and_last_fifth([row["truncated"] for row in own])[1],
    )
