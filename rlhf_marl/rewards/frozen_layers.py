"""Training of a classifier's top layers alone: what the layers below say of each text is computed once and kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.padding import right_pad

_TOKENS_PER_PASS = 2048
_MOST_KEPT = 2**30  # bytes; more texts are read again in every epoch


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
        UsageError: the model has fewer layers, or keeps them in no list.
    """
    parent, name, layers = _layers(model, where)
    if not 0 < trained <= len(layers):
        raise UsageError(f"{where}: trained_layers: {trained} of {len(layers)} layers")
    below = layers[: len(layers) - trained]
    model.base_model.requires_grad_(False)
    for layer in layers[len(below) :]:
        layer.requires_grad_(True)
    kept = sum(map(len, set(map(tuple, texts)))) * model.config.hidden_size * model.dtype.itemsize
    if len(below) == 0 or kept > _MOST_KEPT:
        yield
        return
    setattr(parent, name, below)
    memory = _outputs(model, below[-1], texts, pad)
    replay = _Replay(memory)
    hook = model.register_forward_pre_hook(replay.begin, with_kwargs=True)
    setattr(parent, name, nn.ModuleList([replay, *layers[len(below) :]]))
    try:
        yield
    finally:
        hook.remove()
        setattr(parent, name, layers)


@final
class _Replay(nn.Module):
    """Stands for the layers below: the outputs that they had for the texts of the batch."""

    def __init__(self, memory: dict[tuple[int, ...], Tensor]) -> None:
        super().__init__()
        self._memory = memory
        self._batch: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward pass: remember its ids and mask, (rows, T) each."""
        self._batch = kwargs["input_ids"], kwargs["attention_mask"].bool()

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(rows, T, width) like its input, 0 at padding."""
        result = torch.zeros_like(hidden_states)
        for row, (ids, mask) in enumerate(zip(*self._batch, strict=True)):
            result[row, mask] = self._memory[tuple(ids[mask].tolist())].to(result)
        return result


def _outputs(
    model: PreTrainedModel, last: nn.Module, texts: Sequence[Sequence[int]], pad: int
) -> dict[tuple[int, ...], Tensor]:
    """Output of the layer `last` for each distinct text, (tokens, width)."""
    found: list[Tensor] = []
    hook = last.register_forward_hook(lambda _, inputs, output: found.append(output))
    memory: dict[tuple[int, ...], Tensor] = {}
    model.eval()
    with torch.no_grad():
        for batch in _batches(sorted(set(map(tuple, texts)), key=len)):
            ids, mask = right_pad(batch, pad, model.device)
            found.clear()
            model(input_ids=ids, attention_mask=mask)
            memory |= {text: states[: len(text)].clone() for text, states in zip(batch, found[0], strict=True)}
    hook.remove()
    return memory


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
    raise UsageError(f"{where}: trained_layers: {type(model).__name__} keeps its layers in no list")
