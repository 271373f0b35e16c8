"""A transformers sequence classifier as a reward model."""

import bisect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.chat import Message, plain_text, templated
from rlhf_marl.policy.conversations import flat
from rlhf_marl.rewards.base import CardBase, Conversation, PositiveInt, RewardModel, Text, model_available, public_name
from rlhf_marl.rewards.labels import LabelScore, read_label
from rlhf_marl.sanitise import first_line, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from rlhf_marl.policy.loading import Source

NonNegativeInt = Annotated[int, Field(ge=0)]
_log = logging.getLogger("rlhf_marl")


class Preferred(BaseModel):
    """A row of the gate's table: the share of the pairs of one kind in which the fluent answer scores higher."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    share: Annotated[float, Field(ge=0, le=1)]
    pairs: PositiveInt


class SequenceClassifierCard(CardBase):
    """A transformers sequence classifier."""

    kind: Literal["sequence_classifier"]
    model: Text
    """Hub id, folder or package reference."""
    revision: str | None = None
    """Hub revision; a full commit hash pins the weights."""
    trust_remote_code: bool = False
    """Run code that the model's repository brings; needs a 40-hex revision."""
    adapter: Text | None = None
    """PEFT LoRA adapter that goes over the model: a folder, or a hub id."""
    adapter_revision: str | None = None
    """The adapter's hub revision; a full commit hash pins the weights."""
    label: NonNegativeInt | Text | None = None
    """For a model with several labels: a label's number or name (its logit), or a sum such as P(good) - P(bad)."""
    context: Literal["last", "dialogue"] = "last"
    """What is scored with a response: the last prompt alone, or the whole dialogue before it, with its roles."""
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
    gate: dict[Text, Preferred] | Literal[False] = False
    """By kind of junk, how often it prefers fluent answers; measured after training here. off: train with it anyway."""

    file_keys = ("model", "adapter")

    @property
    def reads_dialogue(self) -> bool:
        return self.context == "dialogue"

    def build(self, base: Any, journal: Any) -> RewardModel:
        return SequenceClassifier(self)

    def scores_with(self) -> str:
        return self.model

    def available(self) -> str:
        return model_available(self.model)

    def loads(self) -> list[tuple[str, str]]:
        return [(self.model, self.dtype)]

    def in_words(self) -> str:
        return f"classifier {public_name(self.model)}{_held_out(Path(self.model))}"


def _held_out(folder: Path) -> str:
    """A locally trained reward model's accuracy on held-out pairs, if its measurements were saved."""
    try:
        found = json.loads((folder / "training.json").read_text("utf-8"))["held_out"]
        return (
            f"; agrees with {100 * found['accuracy']:.0f}% of {found['pairs']} held-out preference pairs "
            f"(95%: {100 * found['low']:.0f} to {100 * found['high']:.0f})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@final
class SequenceClassifier:
    """score(prompt, response) = the model's logit, or what the card's `label` makes of several.

    Each model has its own tokenizer, template, device and dtype.

    Attributes:
        cut: number of inputs so far that were too long and were cut from the left.
    """

    def __init__(self, card: SequenceClassifierCard) -> None:
        from transformers import AutoModelForSequenceClassification  # slow to import

        from rlhf_marl.policy.adapter_files import peft_weights, with_peft
        from rlhf_marl.policy.loading import check_vocabulary, context_of, dtype_for, load_model_of, load_tokenizer
        from rlhf_marl.policy.references import resolve_adapter

        where = f"card {card.name}: model"
        self._card = card
        source: Source = {"revision": card.revision, "trust_remote_code": card.trust_remote_code}
        self._tokenizer = load_tokenizer(card.model, where, **source)
        device = _device(card.device, f"card {card.name}: device")
        dtype = dtype_for(card.dtype, device)
        adapter: Path | None = None
        elsewhere: set[str] = set()
        options: dict[str, Any] = {}
        if card.adapter is not None:
            adapter = resolve_adapter(card.adapter, f"card {card.name}: adapter", card.adapter_revision)
            elsewhere = {name for name in peft_weights(adapter, f"card {card.name}: adapter") if ".lora_" not in name}
            options = {"num_labels": 1} if elsewhere else {}  # the head is in the adapter, and not in the base's config
        model = load_model_of(
            AutoModelForSequenceClassification,
            card.model,
            where,
            dtype=dtype,
            elsewhere=elsewhere,
            **source,
            **options,
        )
        self._label = _label(card, model.config, where)
        self._independent = model.config.problem_type == "multi_label_classification"
        check_vocabulary(model, self._tokenizer, f"{where}: {card.model!r}")
        if card.input == "chat" and not self._tokenizer.chat_template:
            raise UsageError(f"{where}: {card.model!r} has no chat template; use input: pair, or another tokenizer")
        if adapter is not None:
            model = with_peft(
                model, adapter, f"card {card.name}: adapter", base=(card.model, model.config._name_or_path)
            )
        self._model = model.to(device)
        self._limit = min(card.max_tokens or 10**9, self._tokenizer.model_max_length, context_of(model))
        self.cut = 0

    def score(self, prompts: Sequence[Conversation], responses: Sequence[Conversation]) -> list[float]:
        """Scores of responses to prompts: texts, or messages whose roles the chat template gets."""
        cut_before = self.cut
        rows = [self._inputs(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        if self.cut > cut_before:
            _log.warning(
                "reward model %s: %d of %d texts are longer than its %d tokens and were cut from the left (%d so far)",
                *(self._card.name, self.cut - cut_before, len(rows), self._limit, self.cut),
            )
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # similar lengths share a batch
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self._card.batch_size):
            batch = order[start : start + self._card.batch_size]
            for i, score in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                scores[i] = score
        return scores

    def _inputs(self, prompt: Conversation, response: Conversation) -> dict[str, list[int]]:
        card = self._card
        inputs, cut = classifier_inputs(
            self._tokenizer, prompt, response, kind=card.input, limit=self._limit, end_token=card.end_token
        )
        self.cut += cut
        return inputs

    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        """Scores of one right-padded batch.

        Decoder classifiers read the score at the last token that is not the padding id. The padding id is therefore a
        token that occurs in no row: with the end token as padding, a row's own end token would count as padding.
        """
        import torch  # slow to import

        used = {token for row in rows for token in row["input_ids"]}
        pad = next(token for token in range(len(used) + 1) if token not in used)
        for config in {id(c): c for c in (self._model.config, self._model.config.get_text_config())}.values():
            config.pad_token_id = pad
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": pad}
        inputs = {
            name: torch.tensor([[*row[name], *[fill.get(name, 0)] * (longest - len(row[name]))] for row in rows])
            for name in rows[0]
        }
        with torch.inference_mode():
            output = self._model(**{name: value.to(self._model.device) for name, value in inputs.items()})
            scores = _scores(output, len(rows), f"card {self._card.name}: model")
            if self._label is not None:
                return list(self._label(scores, independent=self._independent).tolist())
        if scores.shape[1] != 1:
            raise UsageError(f"card {self._card.name}: model: gives {scores.shape[1]} scores for a text; one is needed")
        return list(scores.float().squeeze(-1).tolist())


def _label(card: SequenceClassifierCard, config: "PreTrainedConfig", where: str) -> LabelScore | None:
    """What the card's `label` asks for; None for the only score, which code of the repository may also give."""
    if card.label is None:
        if config.num_labels != 1 and not card.trust_remote_code:
            names = ", ".join(f"{number} ({printable(name)})" for number, name in list(config.id2label.items())[:20])
            raise UsageError(f"{where}: {card.model!r} has {config.num_labels} labels; choose by `label`: {names}")
        return None
    try:
        return read_label(card.label, config.id2label)
    except ValueError as error:
        raise UsageError(f"card {card.name}: label: {first_line(error)}") from None


def _scores(output: Any, rows: int, where: str) -> "Tensor":
    """(rows, labels): the logits, or where a repository's own code gives others, its score.

    Raises:
        UsageError: the output has neither.
    """
    for name in ("logits", "score", "scores", "end_scores"):
        scores = getattr(output, name, None)
        if scores is not None and getattr(scores, "shape", [None])[0] == rows and scores.ndim <= 2:
            return scores.view(rows, -1)
    raise UsageError(f"{where}: its output has no logits or score for each text; it is {type(output).__name__}")


def _device(name: str | None, where: str) -> "torch.device":
    """The card's device, after a test allocation. Raises UsageError if it does not exist."""
    import torch  # slow to import

    from rlhf_marl.policy.loading import default_device

    if name is None:
        return default_device()
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except Exception as error:  # torch raises many unrelated types
        raise UsageError(f"{where}: {name!r} cannot be used here: {first_line(error)}") from None


def classifier_inputs(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Conversation,
    response: Conversation,
    *,
    kind: str,
    limit: int,
    end_token: bool,
) -> tuple[dict[str, list[int]], bool]:
    """One row of a classifier's inputs, at most `limit` tokens, and whether it was cut from the left to fit.

    kind: pair (the tokenizer joins the two texts, without roles) or chat (its template does, with roles). Only these
    add special tokens.

    Raises:
        TemplateError: the template refuses the messages.
    """
    if kind == "pair":
        first, last = plain_text(tokenizer, flat(prompt)), plain_text(tokenizer, flat(response))
        whole = tokenizer(first, last, verbose=False)
        if len(whole["input_ids"]) <= limit:
            return dict(whole), False
        room = limit - tokenizer.num_special_tokens_to_add(pair=True)
        last_kept = _end(tokenizer, last, room)
        first_kept = _end(tokenizer, first, room - len(tokenizer(last_kept, add_special_tokens=False)["input_ids"]))
        return dict(tokenizer(first_kept, last_kept)), (first_kept, last_kept) != (first, last)
    before = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    after = [Message(role="assistant", content=response)] if isinstance(response, str) else response
    text = templated(tokenizer, [*before, *after], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if end_token and ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    cut = len(ids) > limit
    if cut:
        begin = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = begin + ids[len(ids) - limit + len(begin) :]
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}, cut


def _n_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _end(tokenizer: "PreTrainedTokenizerBase", text: str, n_tokens: int) -> str:
    """The longest suffix of a text that has at most n_tokens tokens."""
    if not tokenizer.is_fast:  # it gives no offsets
        starts = range(len(text))
        return text[bisect.bisect_left(starts, True, key=lambda i: _n_tokens(tokenizer, text[i:]) <= n_tokens) :]
    while text:
        inputs = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = inputs["offset_mapping"]
        if len(offsets) <= n_tokens:
            break
        # A character can span several tokens, so the text from a token's first character may still be too long.
        text = text[max(1, offsets[len(offsets) - n_tokens][0]) :] if n_tokens > 0 else ""
    return text
