"""Reward models: the protocol, the cards that describe them, and the one place that checks their scores.

card.py                 card format                  python_callable.py   any function
sequence_classifier.py  transformers classifiers     scorers.py           shipped functions
prototype.py            similarity to examples       server.py            a scoring server
ensemble.py             several cards as one         preferences.py       preference pairs
judge.py                a grading chat model         training.py          trains a classifier here
"""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rlhf_marl.errors import RlhfMarlError, RunStopped
from rlhf_marl.rewards.card import (
    CallableCard,
    Card,
    EnsembleCard,
    JudgeCard,
    PrototypeCard,
    SequenceClassifierCard,
    ServerCard,
    TrainedCard,
    load_card,
)
from rlhf_marl.runs.journal import UNRECORDED, Journal

__all__ = [
    "CallableCard",
    "Card",
    "EnsembleCard",
    "JudgeCard",
    "PrototypeCard",
    "RewardModel",
    "SequenceClassifierCard",
    "ServerCard",
    "TrainedCard",
    "build_reward_model",
    "finished_card",
    "load_card",
    "score_all",
]

if TYPE_CHECKING:
    from rlhf_marl.policy.sampler import Sampler

_LARGEST = 3.4028234e38  # of float32, in which training counts
_log = logging.getLogger("rlhf_marl")


class RewardModel(Protocol):
    """Scores responses to prompts: one raw number per pair, in order."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]: ...


def build_reward_model(card: Card, base: "Sampler | None" = None, journal: Journal = UNRECORDED) -> RewardModel:
    """The scorer behind a card; raises UsageError if what it needs is not there.

    base: samples from the agents' base model, which a judge can grade with.
    journal: where the answers of servers and endpoints are kept.
    """
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
        case ServerCard():
            from rlhf_marl.rewards.server import Server

            return Server(card, journal)
        case JudgeCard():
            from rlhf_marl.rewards.judge import Judge

            return Judge(card, base, journal)
        case EnsembleCard():
            from rlhf_marl.rewards.ensemble import Ensemble

            members = [finished_card(member) for member in card.member_cards()]
            return Ensemble(card, [(member, build_reward_model(member, base, journal)) for member in members])
        case TrainedCard():
            return build_reward_model(finished_card(card), base, journal)


def finished_card(card: Card) -> Card:
    """The card that can score: itself, or for a `trained` one that of its model, trained now if not in the cache.

    An ensemble's holds its finished members.
    """
    if isinstance(card, EnsembleCard):
        return card.with_cards([finished_card(member) for member in card.member_cards()])
    if not isinstance(card, TrainedCard):
        return card
    from rlhf_marl.rewards.training import cached_folder, train_reward_model

    where = f"card {card.name}"
    folder = cached_folder(card, where)
    if not (folder / "card.yaml").is_file():
        _log.warning("reward model %s: first use: trained from %s now, and kept for later", card.name, card.data)
        train_reward_model(card, folder, where)
    return load_card(str(folder / "card.yaml"), where)


def score_all(
    card: Card, model: RewardModel, prompts: Sequence[str], responses: Sequence[str], *, agent: int | None = None
) -> tuple[list[float], list[float]]:
    """Raw and scaled scores of responses, in a run of an agent's.

    Raises:
        RunStopped: the scorer failed, or a score is missing or no finite number; names agent, card and text.
    """
    who = ("" if agent is None else f"agent {agent}: ") + f"reward model {card.name!r}"
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
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RunStopped(f"{who} returned {_shown(score)}, no finite number, for the text {_shown(text)}")
        if max(abs(number), abs(card.scaled(number))) > _LARGEST:
            raise RunStopped(f"{who} returned {_shown(score)}, too large for float32, for the text {_shown(text)}")
        numbers.append(number)
    return numbers, [card.scaled(number) for number in numbers]


def _shown(value: object) -> str:
    """At most 80 characters on one line, control characters escaped."""
    try:
        text = repr(value[:80] if isinstance(value, str) else value)
    except Exception:  # a number of more than 4,300 digits, or whatever a user's scorer returns
        text = type(value).__name__
    return text if len(text) <= 84 else text[:80] + "..."
