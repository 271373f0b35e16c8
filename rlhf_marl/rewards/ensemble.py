"""Several reward models as one."""

from collections.abc import Sequence
from typing import final

from rlhf_marl.rewards import RewardModel, score_all
from rlhf_marl.rewards.card import Card, EnsembleCard


@final
class Ensemble:
    """Combines the members' scaled scores, so that each member's own scale and offset have done their work."""

    def __init__(self, card: EnsembleCard, members: Sequence[tuple[Card, RewardModel]]) -> None:
        self._combine = card.combine
        self._weights = [member.weight for member in card.members]
        self._members = members

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        columns = []
        for card, model in self._members:
            columns.append(score_all(card, model, prompts, responses)[1])
        if self._combine == "minimum":
            return [min(row) for row in zip(*columns, strict=True)]
        divisor = sum(self._weights) if self._combine == "mean" else 1.0
        return [
            sum(weight * score for weight, score in zip(self._weights, row, strict=True)) / divisor
            for row in zip(*columns, strict=True)
        ]
