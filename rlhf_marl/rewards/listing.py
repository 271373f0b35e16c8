"""The cards in folders, as rows of text. No torch import."""

from collections.abc import Sequence
from pathlib import Path

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.rewards.registry import load_card


def cards(folders: Sequence[Path]) -> list[dict[str, str]]:
    """One row per card file in the folders: kind, what it scores with, licence, local availability."""
    rows = []
    for path in sorted(path for folder in folders for path in folder.glob("*.yaml")):
        try:
            card = load_card(str(path), "reward list")
        except UsageError as error:
            rows.append({"card": str(path), "kind": "", "scorer": f"not a card: {error}", "licence": "", "here": ""})
            continue
        rows.append(
            {
                "card": f"reward_models/{path.name}" if path.parent == DATA_ROOT / "reward_models" else str(path),
                "kind": card.kind,
                "scorer": card.scores_with(),
                "licence": card.licence,
                "here": card.available(),
            }
        )
    return rows
