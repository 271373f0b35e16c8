"""A classifier trained locally from preference pairs, on first use."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from rlhf_marl.files.locate import cache_dir, expanded, find_data
from rlhf_marl.files.user_data import DATA_FILE
from rlhf_marl.files.waiting import waiting
from rlhf_marl.rewards.base import MINILM, CardBase, PositiveInt, RewardModel, Text


def _file_or_off(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value):
        return value
    raise PydanticCustomError("file_or_off", "Input should be a file of labelled pairs, or off")


class TrainedCard(CardBase):
    """A classifier trained here from preference pairs, on first use; `scale` and `offset` are fitted then."""

    kind: Literal["trained"]
    data: Text
    """Preference pairs (`prompt`, `chosen`, `rejected`): JSON Lines (also gzipped), JSON, CSV, TSV or Parquet, a folder
    that `save_to_disk` wrote, or the name of a `datasets` source."""
    split: Text = "train"
    """Split of a `datasets` source."""
    columns: dict[Literal["prompt", "chosen", "rejected"], Text] = Field(default_factory=dict)
    """Names of the data's columns where they are others, such as {chosen: better, rejected: worse}."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows that are no pair: stop, or leave out and count. skip also leaves out pairs longer than max_tokens, which
    are otherwise cut from the left and counted."""
    junk: list[Text] = Field(default_factory=list)
    """More preference pairs, whose rejected answers are junk: trained on, but never held out. Sources as in `data`."""
    derived_junk: list[Literal["echo", "cut", "repeated", "shuffled"]] = Field(default_factory=list)
    """Also train every chosen answer against junk derived from it; the kinds take turns."""
    gate: Annotated[str | Literal[False], PlainValidator(_file_or_off)] = "reward_models/data/gate.jsonl"
    """Pairs with a column `junk`, their kind. `rlhf-marl train` refuses the trained model unless it prefers the chosen
    answer in 95% of each kind. off: do not measure."""
    base: Text = MINILM
    """The encoder or language model that gets a scalar head."""
    input: Literal["pair", "chat"] = "pair"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the pairs kept for accuracy, scaling and calibration."""
    epochs: Annotated[float, Field(gt=0, le=1000)] = 3.0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    batch_size: PositiveInt = 16
    max_tokens: PositiveInt = 256
    junk_margin: Annotated[float, Field(ge=0, le=100)] = 0.0
    """By how much a chosen answer's logit should exceed that of junk, beyond what the loss asks of other pairs."""
    layers: PositiveInt | None = None
    """Keep only the base's first so many layers, which scores faster. null = all layers."""
    trained_layers: PositiveInt | None = None
    """Train only the top so many layers and the head; the layers below read each text once. null = all layers."""
    opening_words: PositiveInt | None = None
    """Also train on the first so many words of each response, for agents whose answers are cut by a token limit."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    file_keys = ("base", "data", "junk", "gate")

    def finished(self) -> CardBase:
        """The card of the trained model; trains it if it is not in the cache."""
        from rlhf_marl.rewards.registry import load_card  # circular: the registry imports this module
        from rlhf_marl.rewards.training import train_reward_model  # TRL is slow to import

        where = f"card {self.name}"
        folder = cached_folder(self, where)
        if not (folder / "card.yaml").is_file():
            with waiting(f"reward model {self.name}: first use: training it from {self.data} and caching it"):
                train_reward_model(self, folder, where)
        return load_card(str(folder / "card.yaml"), where)

    def build(self, base: Any, journal: Any) -> RewardModel:
        return self.finished().build(base, journal)

    def scores_with(self) -> str:
        return self.data

    def available(self) -> str:
        return "trained" if (cached_folder(self, self.name) / "card.yaml").is_file() else "trains on first use"

    def loads(self) -> list[tuple[str, str]]:
        return [(self.base, "auto")]

    def in_words(self) -> str:
        return "a classifier trained from preference pairs"


def cached_folder(card: TrainedCard, where: str) -> Path:
    """Cache folder of a card's model; its name depends on the recipe, the data and a local base."""
    sources = {"data": [card.data], "junk": card.junk, "gate": [card.gate] if card.gate else []}
    files = {key: [_data_files(name, f"{where}: {key}") for name in names] for key, names in sources.items()}
    local = {key for key, found in files.items() if found and all(found)}  # their content counts, not their place
    digest = hashlib.sha256(card.model_dump_json(exclude=local).encode())
    read = [pair for key in sources for pair in zip(sources[key], files[key], strict=True)]
    for source, several in read:
        for file in several:
            if len(several) > 1:  # of a folder, where a line may move to another file
                digest.update(f"{file.relative_to(expanded(source))}\0{file.stat().st_size}\0".encode())
            digest.update(file.read_bytes())
    base = expanded(card.base)
    for file in sorted(base.rglob("*")) if base.is_dir() else []:
        digest.update(f"{file.relative_to(base)}\0".encode())
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return cache_dir() / "reward_models" / f"{card.name.replace(' ', '_')}-{digest.hexdigest()[:12]}"


def _data_files(source: str, where: str) -> list[Path]:
    """The local files of a source of pairs, in a fixed order; none if it is on the hub."""
    folder = expanded(source)
    if folder.is_dir():
        return sorted(file for file in folder.rglob("*") if file.is_file())
    local = DATA_FILE.search(source) or folder.is_file()
    return [find_data(source, where)] if local else []
