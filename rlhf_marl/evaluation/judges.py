"""Judges: the agents' reward models, held-out reward models, and a chat model that compares pairs."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.instructions import Task, load_instructions
from rlhf_marl.policy.sampler import Sampler
from rlhf_marl.rewards import (
    Card,
    EnsembleCard,
    JudgeCard,
    RewardModel,
    build_reward_model,
    load_card,
)
from rlhf_marl.rewards.judge import build_grader
from rlhf_marl.sanitise import neutralise

# Shipped cards that score without a download. Those that trained an agent of the run are excluded.
HELD_OUT = ("harmless", "helpful", "courteous", "clean_language")
HELD_OUT_CARDS = tuple(f"reward_models/{name}.yaml" for name in HELD_OUT)
PAIRWISE = "prompts/pairwise.yaml"
# Card fields that do not affect which of two responses scores higher.
_NOT_CONTENT = {"name", "description", "licence", "scale", "offset", "batch_size", "device", "dtype", "timeout"}
_NOT_CONTENT |= {"max_retries", "api_key_env"}


@dataclass(frozen=True, slots=True)
class Scorer:
    """One column of the cross-reward matrix; trained_agents: agents trained with it; empty for a held-out judge."""

    name: str
    card: Card
    model: RewardModel
    trained_agents: list[int]


def own_scorers(cards: Sequence[Card], models: Sequence[RewardModel]) -> list[Scorer]:
    """The agents' distinct reward models; the agent's number is appended to a name that is already taken."""
    scorers: list[Scorer] = []
    for agent, (card, model) in enumerate(zip(cards, models, strict=True)):
        same = next((scorer for scorer in scorers if scorer.card == card), None)
        if same is not None:
            same.trained_agents.append(agent)
            continue
        taken = any(scorer.name == card.name for scorer in scorers)
        scorers.append(Scorer(f"{card.name} (agent {agent})" if taken else card.name, card, model, [agent]))
    return scorers


def held_out_scorers(
    own: Sequence[Scorer], references: Sequence[str] | None, base: Sampler
) -> tuple[list[Scorer], list[str]]:
    """Held-out judges, and warnings about requested or shipped cards that cannot judge.

    references: cards chosen by the user; by default HELD_OUT.

    Raises:
        UsageError: a chosen card that does not exist or cannot score.
    """
    cards = [scorer.card for scorer in own]
    judges: list[Scorer] = []
    warnings: list[str] = []
    for reference in references if references is not None else HELD_OUT_CARDS:
        card = load_card(reference, "--judges")
        if any(judge.name == card.name for judge in judges):
            raise UsageError(f"--judges: two cards are named {card.name!r}; give one of them another name")
        try:
            if trains(card, cards) is not None:
                if references is not None:
                    warnings.append(f"judge {card.name} is not held out: it trained an agent of this run")
                continue
            card = card.finished()
            judges.append(Scorer(card.name, card, build_reward_model(card, base), []))
        except UsageError as error:
            if references is not None:
                raise
            warnings.append(f"held-out judge {card.name} is excluded: {error}")
    return judges, warnings


def check_held_out(card: Card, own: Sequence[Card], where: str) -> Card:
    """The finished card; raises UsageError if it trains an agent. own: a card per agent."""
    _refuse(card, trains(card, own), where)
    return card.finished()


def check_recipe(card: Card, own: Sequence[Card], where: str) -> None:
    """Raise UsageError if the card as written shows that it trains an agent. own: a card per agent."""
    _refuse(card, _in_common(card, own), where)


def _refuse(card: Card, agent: int | None, where: str) -> None:
    if agent is not None:
        raise UsageError(f"{where}: {card.name!r} trains agent {agent}; a judge must train nobody")


def trains(card: Card, own: Sequence[Card]) -> int | None:
    """The first agent whose reward model has a name or a model in common with the card's; None if there is none.

    own: a card per agent. What is written is compared first: to finish a card can mean to train it.
    """
    agent = _in_common(card, own)
    return agent if agent is not None else _in_common(card.finished(), [other.finished() for other in own])


def _in_common(card: Card, own: Sequence[Card]) -> int | None:
    """The first agent whose card has a name or a content in common with the card."""
    names, contents = _names(card), _contents(card)
    return next((i for i, other in enumerate(own) if _names(other) & names or _contents(other) & contents), None)


def _names(card: Card) -> set[str]:
    """The card's name and those of an ensemble's members."""
    return {card.name}.union(*(_names(member) for member in card.member_cards()))


def _contents(card: Card) -> set[str]:
    """What determines the ranking by a card or an ensemble's members, independent of name and scale."""
    content = {card.model_dump_json(exclude=_NOT_CONTENT)} if not isinstance(card, EnsembleCard) else set()
    return content.union(*(_contents(member) for member in card.member_cards()))


def card_digest(card: Card) -> str:
    """Hash of a card, of the files that it names and of an ensemble's members."""
    digest = hashlib.sha256(card.model_dump_json().encode())
    function = getattr(card, "function", "").rpartition(":")[0]
    for name in (function, getattr(card, "data", ""), getattr(card, "rubric", "")):
        if Path(name).suffix:
            with suppress(UsageError):
                digest.update(find_data(name, card.name).read_bytes())
    for member in card.member_cards():
        digest.update(card_digest(member).encode())
    return digest.hexdigest()[:16]


@final
class PairwiseJudge:
    """A chat model that says which of two responses is better, asked twice with the order swapped."""

    def __init__(self, card: JudgeCard, base: Sampler) -> None:
        self.name = card.name
        path: Path = find_data(PAIRWISE, "--judge")
        self._task, self._where = load_instructions(path, Task), f"{path}: user"
        self._task.messages(self._where, prompt="p", first="a", second="b")
        self._batch = card.batch_size
        self._grade = build_grader(card.model_copy(update={"grades": ["A", "B"]}), base)

    def compare(
        self, prompts: Sequence[str], base: Sequence[str], trained: Sequence[str]
    ) -> tuple[list[float], list[bool]]:
        """Per prompt: 1 if trained is better in both orders, 0 if base is, else 0.5; and whether the orders agree."""
        forward = self._prefers_first(prompts, trained, base)
        backward = self._prefers_first(prompts, base, trained)
        consistent = [None not in (a, b) and a != b for a, b in zip(forward, backward, strict=True)]
        return [float(bool(a)) if agree else 0.5 for a, agree in zip(forward, consistent, strict=True)], consistent

    def _prefers_first(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[bool | None]:
        """None if the answer names neither or both."""
        conversations = [
            self._task.messages(self._where, prompt=neutralise(p), first=neutralise(a), second=neutralise(b))
            for p, a, b in zip(prompts, first, second, strict=True)
        ]
        found: list[bool | None] = []
        for start in range(0, len(conversations), self._batch):
            for weights in self._grade(conversations[start : start + self._batch]):
                found.append(None if weights is None or weights[0] == weights[1] else weights[0] > weights[1])
        return found


def pairwise_judge(reference: str, base: Sampler) -> PairwiseJudge:
    """The judge behind a card; raises UsageError if it is of another kind."""
    card = load_card(reference, "--judge")
    if not isinstance(card, JudgeCard):
        raise UsageError(f"--judge: {reference} is a card of kind {card.kind}; give one of kind judge")
    return PairwiseJudge(card, base)
