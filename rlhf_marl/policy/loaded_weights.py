"""Whether all of a model's weights came from its files: what did not load is random, and never used without a word."""

from collections.abc import Collection
from typing import Any, Literal

from transformers import PreTrainedModel

from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import printable

Head = Literal["loaded", "trained", "unused"]
"""What becomes of the layers on top of the transformer: used as loaded, trained from random weights, or not used."""


def check_loaded(
    model: PreTrainedModel, info: dict[str, Any], where: str, *, head: Head = "loaded", elsewhere: Collection[str] = ()
) -> None:
    """Check what `from_pretrained(..., output_loading_info=True)` says.

    Args:
        where: file, key and model, for the error message.
        elsewhere: names of weights that are loaded later, by an adapter.

    Raises:
        UsageError: weights of the model that the files lack, or weights in the files that the model does not have;
            of the transformer alone unless its head is `loaded`.
    """
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if head != "loaded":
        missing = {key for key in missing if _in_transformer(model, key)}
    if head != "loaded" or missing & {*elsewhere}:  # then a head in the files is not used
        unexpected = {key for key in unexpected if _in_transformer(model, key)}
    missing -= {*elsewhere}
    unexpected -= {name for name, _ in model.named_buffers()}  # computed, whatever old files say of them
    kind = type(model).__name__
    if missing:
        raise UsageError(f"{where}: its files lack weights of a {kind}, which would be random: {_some(missing)}")
    if unexpected:
        raise UsageError(f"{where}: its files hold weights that a {kind} does not have: {_some(unexpected)}")


def _some(names: set[str]) -> str:
    return printable(min(names))[:100] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _in_transformer(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to the transformer itself, not to a head or to the pooler, which only heads read."""
    part = key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    return part != "pooler" and part in dict(model.base_model.named_children())
