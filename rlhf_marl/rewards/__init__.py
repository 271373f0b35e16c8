"""Reward models: the protocol, the cards that describe them, and the one place that checks their scores.

card.py       card format           python_callable.py  any function
prototype.py  similarity to examples  scorers.py          shipped functions
"""

import math
from collections.abc import Sequence
from typing import Protocol

from rlhf_marl.errors import RlhfMarlError, RunStopped
from rlhf_marl.rewards.card import CallableCard, Card, PrototypeCard, SequenceClassifierCard, load_card

__all__ = [
    "CallableCard",
    "Card",
    "PrototypeCard",
    "RewardModel",
    "SequenceClassifierCard",
    "build_reward_model",
    "load_card",
    "score_all",
]


class RewardModel(Protocol):
    """Scores responses to prompts: one raw number per pair, in order."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]: ...


def build_reward_model(card: Card) -> RewardModel:
    """The scorer behind a card; raises UsageError if what it needs is not there."""
    match card:
        case PrototypeCard():
            from rlhf_marl.rewards.prototype import Prototype, load_encoder

            return Prototype(card, load_encoder(card.model, f"card {card.name}: model"))
        case SequenceClassifierCard():
            from rlhf_marl.rewards.sequence_classifier import SequenceClassifier

            return SequenceClassifier(card)
        case CallableCard():
            from rlhf_marl.rewards.python_callable import PythonCallable

            return PythonCallable(card)


def score_all(
    card: Card, model: RewardModel, prompts: Sequence[str], responses: Sequence[str], *, agent: int
) -> tuple[list[float], list[float]]:
    """Raw and scaled scores of an agent's responses.

    Raises:
        RunStopped: the scorer failed, or a score is missing or no finite number; names agent, card and text.
    """
    who = f"agent {agent}: reward model {card.name!r}"
    try:
        raw = model.score(prompts, responses)
    except RlhfMarlError:
        raise
    except Exception as error:  # whatever a user's scorer raises
        raise RunStopped(
            f"{who} raised {type(error).__name__}: {_shown(str(error))}; first text: {_shown(responses[0])}"
        ) from error
    if not hasattr(raw, "__len__") or len(raw) != len(responses):
        count = f"{len(raw)} scores" if hasattr(raw, "__len__") else type(raw).__name__
        raise RunStopped(f"{who} returned {count} for {len(responses)} responses; first text: {_shown(responses[0])}")
    numbers = []
    for score, text in zip(raw, responses, strict=True):
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RunStopped(f"{who} returned {_shown(score)}, no finite number, for the text {_shown(text)}")
        numbers.append(number)
    return numbers, [card.scaled(number) for number in numbers]


def _shown(value: object) -> str:
    """At most 80 characters on one line, control characters escaped."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 84 else text[:80] + "..."
