"""A classifier trained locally from preference pairs, on first use."""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_marl.files.locate import cache_dir, find_data
from rlhf_marl.rewards.base import MINILM, CardBase, PositiveInt, RewardModel, Text

_log = logging.getLogger("rlhf_marl")


class TrainedCard(CardBase):
    """A classifier trained here from preference pairs, on first use; `scale` and `offset` are fitted then."""

    kind: Literal["trained"]
    data: Text
    """JSON Lines of preference pairs (`prompt`, `chosen`, `rejected`), or the name of a `datasets` source."""
    split: Text = "train"
    """Split of a `datasets` source."""
    base: Text = MINILM
    """The encoder or language model that gets a scalar head."""
    input: Literal["pair", "chat"] = "pair"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the pairs kept for accuracy, scaling and calibration."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    batch_size: PositiveInt = 16
    max_tokens: PositiveInt = 256
    opening_words: PositiveInt | None = None
    """Also train on the first so many words of each response, for agents whose answers are cut by a token limit."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    file_keys = ("base", "data")

    def finished(self) -> CardBase:
        """The card of the trained model; trains it if it is not in the cache."""
        from rlhf_marl.rewards.registry import load_card  # circular: the registry imports this module
        from rlhf_marl.rewards.training import train_reward_model  # TRL is slow to import

        where = f"card {self.name}"
        folder = cached_folder(self, where)
        if not (folder / "card.yaml").is_file():
            _log.warning("reward model %s: first use: training it from %s and caching it", self.name, self.data)
            train_reward_model(self, folder, where)
        return load_card(str(folder / "card.yaml"), where)

    def build(self, base: Any, journal: Any) -> RewardModel:
        return self.finished().build(base, journal)

    def scores_with(self) -> str:
        return self.data

    def available(self) -> str:
        return "trained" if (cached_folder(self, self.name) / "card.yaml").is_file() else "trains on first use"

    def in_words(self) -> str:
        return "a classifier trained from preference pairs"


def cached_folder(card: TrainedCard, where: str) -> Path:
    """Cache folder of a card's model; its name depends on the recipe and the data."""
    local = card.data.endswith((".jsonl", ".jsonl.gz"))
    digest = hashlib.sha256(card.model_dump_json(exclude={"data"} if local else None).encode())
    if local:
        digest.update(find_data(card.data, f"{where}: data").read_bytes())
    return cache_dir() / "reward_models" / f"{card.name.replace(' ', '_')}-{digest.hexdigest()[:12]}"
