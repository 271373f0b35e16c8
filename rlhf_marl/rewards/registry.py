"""Registry of reward model kinds, and reading of cards."""

from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.rewards.base import CardBase, RewardModel
from rlhf_marl.rewards.ensemble import EnsembleCard
from rlhf_marl.rewards.judge import JudgeCard
from rlhf_marl.rewards.prototype import PrototypeCard
from rlhf_marl.rewards.python_callable import CallableCard
from rlhf_marl.rewards.sequence_classifier import SequenceClassifierCard
from rlhf_marl.rewards.server import ServerCard
from rlhf_marl.rewards.trained import TrainedCard
from rlhf_marl.services.journal import UNRECORDED, Journal

KINDS: dict[str, type[CardBase]] = {
    "sequence_classifier": SequenceClassifierCard,
    "trained": TrainedCard,
    "prototype": PrototypeCard,
    "callable": CallableCard,
    "http": ServerCard,
    "judge": JudgeCard,
    "ensemble": EnsembleCard,
}


def card_adapter() -> TypeAdapter[CardBase]:
    """Validates a card of any registered kind."""
    return _adapter(tuple(KINDS.values()))


@cache
def _adapter(kinds: tuple[type[CardBase], ...]) -> TypeAdapter[CardBase]:
    union: Any = Annotated[reduce(or_, kinds), Field(discriminator="kind")]
    return TypeAdapter(union)


def build_reward_model(card: CardBase, base: Any = None, journal: Journal = UNRECORDED) -> RewardModel:
    """Build a card's scorer. A card to be trained is trained first."""
    return card.finished().build(base, journal)


def load_card(reference: str, where: str, within: tuple[Path, ...] = ()) -> CardBase:
    """Read a card and an ensemble's members; shipped ones (`reward_models/harmless.yaml`) are found from any folder.

    Files that the card names are looked up in the card's folder first. When read, they are also looked up in the
    working folder, then among the shipped files.

    Args:
        within: files of the enclosing ensembles.

    Raises:
        UsageError: missing file, one line per mistake in it, or an ensemble that contains itself.
    """
    path = find_data(reference, where)
    if path.resolve() in within:
        raise UsageError(f"{where}: {reference}: the ensemble is a member of itself")
    card = check_card(load_yaml(path), reference).beside(path.parent)
    return card.resolved((*within, path.resolve()))


def check_card(content: Any, where: str) -> CardBase:
    """Validate plain data as a card. Raises UsageError with one line per mistake."""
    try:
        return card_adapter().validate_python(content)
    except ValidationError as error:
        raise UsageError(explain(error, where, content)) from None
