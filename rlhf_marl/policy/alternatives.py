"""How likely a response's tokens and their alternatives were, for clients that ask for log-probabilities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.log_probabilities import POSITIONS


class Likelihood(NamedTuple):
    """One token's log-probability at temperature 1, in nats, and the likeliest tokens there with theirs."""

    log_probability: float
    likeliest: list[tuple[int, float]]


@torch.inference_mode()
def likelihoods(
    model: PreTrainedModel,
    adapters: StackedAdapters,
    prompt: Sequence[int],
    response: Sequence[int],
    n_likeliest: int,
    agents: slice | None,
) -> list[Likelihood]:
    """One for each of the response's token ids, in a single pass; the likeliest tokens first.

    agents: whose adapter is active, one; None: the base model.
    """
    if not response:
        return []
    ids = torch.tensor([[*prompt, *response[:-1]]], device=model.device)
    with adapters.use(agents):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(response)).logits[0]
    found = []
    size = POSITIONS[model.device.type]
    for begin in range(0, len(response), size):
        log = torch.log_softmax(logits[begin : begin + size].float(), dim=-1)
        chosen = torch.tensor(response[begin : begin + size], device=log.device).unsqueeze(-1)
        top = log.topk(n_likeliest)
        rows = zip(log.gather(-1, chosen).squeeze(-1).tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
        found += [Likelihood(own, list(zip(tokens, values, strict=True))) for own, tokens, values in rows]
    return found
