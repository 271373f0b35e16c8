"""Choice of a classifier's layers: which are kept, and which learn; what those below say of each text is kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PreTrainedModel

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.padding import right_pad

_TOKENS_PER_PASS = 2048
_MOST_KEPT = 2**30  # bytes; more texts are read again in every epoch


def keep_layers(model: PreTrainedModel, kept: int, where: str) -> None:
    """Remove all but the first so many layers.

    Raises:
        UsageError: the model has fewer layers, or keeps them in no list.
    """
    parent, name, layers = _layers(model, where)
    if not 0 < kept <= len(layers):
        raise UsageError(f"{where}: layers: {kept} of {len(layers)} layers")
    setattr(parent, name, layers[:kept])
    model.config.num_hidden_layers = kept
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = types[:kept]


@contextmanager
def top_layers(
    model: PreTrainedModel, trained: int, texts: Sequence[Sequence[int]], pad: int, where: str
) -> Iterator[None]:
    """Context in which only the top layers and the head learn, and the layers below answer `texts` from memory.

    Args:
        trained: how many layers learn.
        texts: token ids of all texts that the model will be trained on.
        pad: padding token; texts are padded on the right.

    Raises:
        UsageError: the model has fewer layers, keeps them in no list, or does more than one layer after the other.
    """
    parent, name, layers = _layers(model, where)
    if not 0 < trained <= len(layers):
        raise UsageError(f"{where}: trained_layers: {trained} of {len(layers)} layers")
    below = layers[: len(layers) - trained]
    model.base_model.requires_grad_(False)
    bert = model.bert if isinstance(model, BertForSequenceClassification) else None
    for module in [*layers[len(below) :], *([bert.pooler] if bert else [])]:  # the pooler is above the layers
        module.requires_grad_(True)
    kept = sum(map(len, set(map(tuple, texts)))) * model.config.hidden_size * model.dtype.itemsize
    if len(below) == 0 or kept > _MOST_KEPT:
        yield
        return
    longest = right_pad([max(texts, key=len)], pad, model.device)
    expected = _logits(model, *longest)
    setattr(parent, name, below)
    replay = _Replay(*_outputs(model, below[-1], texts, pad))
    setattr(parent, name, nn.ModuleList([replay, *layers[len(below) :]]))
    hooks = [model.register_forward_pre_hook(replay.begin, with_kwargs=True)]
    if bert:
        hooks.append(layers[-1].get_submodule("attention.output").register_forward_pre_hook(_first_token))
    try:
        if not torch.allclose(_logits(model, *longest), expected, atol=1e-4, rtol=1e-3):
            raise UsageError(f"{where}: trained_layers: {type(model).__name__} cannot be trained in part; leave it out")
        yield
    finally:
        for hook in hooks:
            hook.remove()
        setattr(parent, name, layers)


def _first_token(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(rows, 1, width) of each: BERT's pooler reads no other token, so most of the last layer is left out."""
    return tuple(states[:, :1] for states in inputs)


@final
class _Replay(nn.Module):
    """Stands for the layers below: the outputs that they had for the texts of the batch.

    memory: (tokens, width) for the ids of each text.
    others: how many values such a layer returns beside; None for a layer that returns no tuple.
    """

    def __init__(self, memory: dict[tuple[int, ...], Tensor], others: int | None) -> None:
        super().__init__()
        self._memory = memory
        self._others = others
        self._batch: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward pass: remember its ids and mask, (rows, T) each."""
        self._batch = kwargs["input_ids"], kwargs["attention_mask"].bool()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        """(rows, T, width) like its input, 0 at padding; the other values are None."""
        result = torch.zeros_like(hidden_states)
        for row, (ids, mask) in enumerate(zip(*self._batch, strict=True)):
            result[row, mask] = self._memory[tuple(ids[mask].tolist())].to(result)
        return result if self._others is None else (result, *[None] * self._others)


def _outputs(
    model: PreTrainedModel, last: nn.Module, texts: Sequence[Sequence[int]], pad: int
) -> tuple[dict[tuple[int, ...], Tensor], int | None]:
    """_Replay's memory of the layer `last`, and how many other values it returns."""
    found: list[Any] = []
    hook = last.register_forward_hook(lambda _, inputs, output: found.append(output))
    memory: dict[tuple[int, ...], Tensor] = {}
    for batch in _batches(sorted(set(map(tuple, texts)), key=len)):
        found.clear()
        _logits(model, *right_pad(batch, pad, model.device))
        outputs = found[0][0] if isinstance(found[0], tuple) else found[0]
        memory |= {text: states[: len(text)].clone() for text, states in zip(batch, outputs, strict=True)}
    hook.remove()
    return memory, len(found[0]) - 1 if isinstance(found[0], tuple) else None


def _logits(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def _batches(texts: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Neighbours of at most _TOKENS_PER_PASS tokens with padding; texts are sorted by length."""
    batch: list[tuple[int, ...]] = []
    for text in texts:
        if batch and (len(batch) + 1) * len(text) > _TOKENS_PER_PASS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _layers(model: PreTrainedModel, where: str) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of the model's layers, and where it hangs."""
    for parent in model.base_model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == model.config.num_hidden_layers:
                return parent, name, child
    raise UsageError(f"{where}: {type(model).__name__} keeps its layers in no list, so that none can be chosen")
