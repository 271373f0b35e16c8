"""Whether a model reads padded prompts as it reads each alone, and can be trained: short trials before a run."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.policy.padding import positions
from rlhf_marl.policy.prefix_cache import PrefixCache, prefill
from rlhf_marl.sanitise import first_line

# The root mean square of the difference between logits, in standard deviations of the logits. A token at another
# position, or one that sees later tokens, makes about 1.
_ALLOWED = 1e-3
_ALLOWED_HALF = 0.3  # in 16 bits, rounding may choose other experts


@torch.inference_mode()
def check_reading(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise UsageError if the model's logits depend on padding, on the cache or on later tokens, or if it fails.

    Sampling and training read prompts of different lengths in one batch, padded on the left, and continue from a cache.
    A model for which padding must not follow a shared beginning is marked: `no_gaps` (see `sees_all`).
    """
    name = type(model).__name__
    ids = (tokenizer("One, two, three, four, five.", add_special_tokens=False)["input_ids"] * 10)[:10]
    rows, following = [ids[:9], [*ids[:3], *ids[5:8]]], ids[9:]
    allowed = _ALLOWED if model.dtype == torch.float32 else _ALLOWED_HALF
    try:
        alone = [
            model(input_ids=torch.tensor([row + following], device=model.device), use_cache=False).logits[0, -2:]
            for row in rows
        ]
        expected = torch.stack(alone).float()
        for no_gaps in (False, True):
            model.no_gaps = no_gaps
            difference = _logits(model, rows, following, shared=ids[:3]) - expected
            if difference.square().mean().sqrt() <= allowed * expected.std():
                return
    except Exception as error:  # the models' code raises many unrelated types
        reason = first_line(error)
        raise UsageError(f"{where}: a {name} cannot be read in batches with cached beginnings: {reason}") from None
    raise UsageError(
        f"{where}: a {name} answers otherwise when its prompt is padded or cached, or sees later tokens; only models "
        "that do not are supported"
    )


def _logits(model: PreTrainedModel, rows: list[list[int]], following: list[int], shared: list[int]) -> torch.Tensor:
    """Logits after each row, and after the one token that follows it, as sampling computes them: (rows, 2, vocabulary).

    shared: what all rows begin with.
    """
    first, cache, mask = prefill(model, rows, 1, following[0], room=1, cached_prefix=PrefixCache().read(model, shared))
    mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
    second = model(
        input_ids=torch.tensor([following] * len(rows), device=model.device),
        attention_mask=mask,
        position_ids=positions(mask)[:, -1:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return torch.stack([first, second], dim=1).float()


def check_training(model: PreTrainedModel, adapters: StackedAdapters, where: str) -> None:
    """Raise UsageError if gradients of the adapters cannot be computed. Leaves the gradient at zero."""
    begin, response = [3, 4, 5], [6, 7]
    n_agents = adapters.n_agents
    try:
        evaluate_responses(
            model,
            adapters,
            [[begin]] * n_agents,
            [[response]] * n_agents,
            temperature=1.0,
            pad=begin[0],
            signal=torch.ones(n_agents, 1, device=model.device),
        )
    except Exception as error:  # the models' code raises many unrelated types
        reason = first_line(error)
        raise UsageError(f"{where}: a {type(model).__name__} cannot be trained with adapters: {reason}") from None
    adapters.parameters.grad.zero_()  # type: ignore[union-attr]
