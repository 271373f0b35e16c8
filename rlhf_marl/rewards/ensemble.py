"""Several reward models as one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from rlhf_marl.rewards.base import CardBase, Conversation, DataRow, Finite, RewardModel, absolute, score_all
from rlhf_marl.services.journal import Journal


def _path_or_card(value: Any) -> str | CardBase:
    from rlhf_marl.rewards.registry import card_adapter  # circular: the registry imports this module

    if (isinstance(value, str) and value) or isinstance(value, CardBase):
        return value
    if isinstance(value, dict):
        return card_adapter().validate_python(value)
    raise PydanticCustomError("path_or_card", "Input should be a card's path or a card")


class Member(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    card: Annotated[str | SerializeAsAny[CardBase], PlainValidator(_path_or_card)]
    """Path of the member's card, or the card itself."""
    weight: Finite = 1.0


class EnsembleCard(CardBase):
    """Several cards as one: the weighted sum, the mean or the minimum of their scaled scores."""

    kind: Literal["ensemble"]
    combine: Literal["sum", "mean", "minimum"] = "mean"
    """sum: weighted; mean: weighted, divided by the sum of the weights; minimum: of the members, weights unused."""
    disagreement_penalty: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """For mean: minus this many (weighted) standard deviations of the members' scaled scores. A response that only some
    members like scores below one that all like a little."""
    members: Annotated[list[Member], Field(min_length=1)]

    @model_validator(mode="after")
    def _mean_exists(self) -> "EnsembleCard":
        if self.combine == "mean" and sum(member.weight for member in self.members) == 0:
            raise ValueError("members: the weights sum to 0, which has no mean; use combine: sum")
        if self.disagreement_penalty:
            if self.combine != "mean":
                raise ValueError(f"disagreement_penalty: goes with combine: mean, not {self.combine}")
            if min(member.weight for member in self.members) < 0:
                raise ValueError("disagreement_penalty: a member has a negative weight; all must be at least 0")
        return self

    def member_cards(self, within: tuple[Path, ...] = ()) -> list[CardBase]:
        """The members' cards; those given by path are read with `load_card`."""
        from rlhf_marl.rewards.registry import load_card  # circular: the registry imports this module

        where = f"card {self.name}: members"
        return [load_card(m.card, where, within) if isinstance(m.card, str) else m.card for m in self.members]

    @property
    def reads_dialogue(self) -> bool:
        return any(card.reads_dialogue for card in self.member_cards())

    @property
    def reads_rows(self) -> bool:
        return any(card.reads_rows for card in self.member_cards())

    def with_members(self, cards: Sequence[str | CardBase]) -> Self:
        """A copy with these member cards, or paths of cards."""
        pairs = zip(self.members, cards, strict=True)
        return self.model_copy(update={"members": [member.model_copy(update={"card": card}) for member, card in pairs]})

    def resolved(self, within: tuple[Path, ...]) -> Self:
        return self.with_members([member.resolved(within) for member in self.member_cards(within)])

    def finished(self) -> Self:
        return self.with_members([member.finished() for member in self.member_cards()])

    def build(self, base: Any, journal: Journal) -> RewardModel:
        members = self.member_cards()
        return Ensemble(self, [(member, member.build(base, journal)) for member in members])

    def scores_with(self) -> str:
        return ", ".join(member.name for member in self.member_cards())

    def in_words(self) -> str:
        names = [Path(m.card).stem if isinstance(m.card, str) else m.card.name for m in self.members]
        penalty = f", minus {self.disagreement_penalty:g} standard deviations" if self.disagreement_penalty else ""
        return f"{self.combine} of {', '.join(names)}{penalty}"

    def beside(self, folder: Path) -> Self:
        return self.with_members(
            [absolute(m.card, folder) if isinstance(m.card, str) else m.card.beside(folder) for m in self.members]
        )


@final
class Ensemble:
    """Combines the members' scaled scores, so each member's own scale and offset apply first."""

    def __init__(self, card: EnsembleCard, members: Sequence[tuple[CardBase, RewardModel]]) -> None:
        self._combine, self._penalty = card.combine, card.disagreement_penalty
        self._weights = [member.weight for member in card.members]
        self._members = members

    def score(
        self, prompts: Sequence[Conversation], responses: Sequence[str], rows: Sequence[DataRow] = ()
    ) -> list[float]:
        """Members that do not read whole dialogues get their last messages."""
        last = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        scores = np.array(
            [
                score_all(card, model, prompts if card.reads_dialogue else last, responses, rows=rows)[1]
                for card, model in self._members
            ]
        )
        if self._combine == "minimum":
            return scores.min(0).tolist()
        if self._combine == "sum":
            return (self._weights @ scores).tolist()
        mean = np.average(scores, 0, self._weights)
        if not self._penalty:
            return mean.tolist()
        deviation = np.sqrt(np.average((scores - mean) ** 2, 0, self._weights))
        return (mean - self._penalty * deviation).tolist()
