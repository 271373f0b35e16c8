"""Reward by embedding similarity to examples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

from pydantic import Field

from rlhf_marl.rewards.base import MINILM, CardBase, PositiveInt, RewardModel, Text, model_available, public_name

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PrototypeCard(CardBase):
    """Mean embedding similarity to examples listed as good, minus that to examples listed as bad."""

    kind: Literal["prototype"]
    model: Text = MINILM
    """A sentence encoder (mean pooling): hub id, folder or package reference."""
    good: Annotated[list[Text], Field(min_length=1)]
    bad: list[Text] = Field(default_factory=list)
    batch_size: PositiveInt = 64

    file_keys = ("model",)

    def build(self, base: Any, journal: Any) -> RewardModel:
        return Prototype(self, load_encoder(self.model, f"card {self.name}: model"))

    def scores_with(self) -> str:
        return self.model

    def available(self) -> str:
        return model_available(self.model)

    def loads(self) -> list[tuple[str, str]]:
        return [(self.model, "float32")]

    def in_words(self) -> str:
        return f"similarity to examples, by {public_name(self.model)}"


@final
class Encoder:
    """Sentence embeddings: mean over the last hidden states of the real tokens, scaled to length 1."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", context: int) -> None:
        """context: most tokens that the model reads; longer texts are cut from the right."""
        self._model, self._tokenizer = model, tokenizer
        self._limit = min(tokenizer.model_max_length, context)

    def __call__(self, texts: Sequence[str], batch_size: int) -> "Tensor":
        """(len(texts), dimension) float32."""
        import torch  # slow to import

        # Texts of similar length share a batch; the order is restored at the end.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = []
        for start in range(0, len(order), batch_size):
            batch = [texts[i] for i in order[start : start + batch_size]]
            inputs = self._tokenizer(batch, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
            with torch.inference_mode():
                hidden = self._model(**inputs.to(self._model.device)).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            parts.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        embeddings = torch.cat(parts)
        return embeddings[torch.tensor(order).argsort()]


_ENCODERS: dict[str, Encoder] = {}


def load_encoder(reference: str, where: str) -> Encoder:
    """Load an encoder once per model; all cards that name it share it."""
    from transformers import AutoModel  # slow to import

    from rlhf_marl.policy.loading import check_vocabulary, context_of, load_model_of, load_tokenizer

    if reference not in _ENCODERS:
        model = load_model_of(AutoModel, reference, where, head="unused")
        tokenizer = load_tokenizer(reference, where)
        check_vocabulary(model, tokenizer, f"{where}: {reference!r}")
        _ENCODERS[reference] = Encoder(model, tokenizer, context_of(model))
    return _ENCODERS[reference]


@final
class Prototype:
    """score(response) = mean cosine similarity to good examples - mean similarity to bad ones, in [-2, 2]."""

    def __init__(self, card: PrototypeCard, encoder: Encoder) -> None:
        self._encoder, self._batch_size = encoder, card.batch_size
        self._direction = encoder(card.good, card.batch_size).mean(0)
        if card.bad:
            self._direction = self._direction - encoder(card.bad, card.batch_size).mean(0)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return (self._encoder(responses, self._batch_size) @ self._direction).tolist()
