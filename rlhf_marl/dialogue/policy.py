"""Log-probabilities, entropy and KL of sampled responses, and the policy gradient through the stacked adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_marl.chat import left_pad, positions
from rlhf_marl.dialogue.adapters import StackedAdapters
from rlhf_marl.dialogue.generation import read_beginning, read_prompts

# Activations of one backward pass grow with its tokens; above this many the (agents x dialogues) grid is split, so that
# memory stays flat in the number of agents. Gradients add up over the parts.
TOKENS_PER_PASS = 256


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per response, each (n_agents, n_dialogues).

    Attributes:
        log_probability: log π(a | s), the sum over the response's tokens, at the sampling temperature.
        entropy: mean over tokens of the policy's entropy, in nats.
        kl: sum over tokens of KL(π || base) at the sampled prefixes, in nats: given the prefixes exact over the
            vocabulary, so an unbiased estimate of the response's KL divergence.
    """

    log_probability: Tensor
    entropy: Tensor
    kl: Tensor


def evaluate_responses(
    model: PreTrainedModel,
    adapters: StackedAdapters,
    states: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float,
    pad: int,
    signal: Tensor | None = None,
    kl_coefficient: float = 0.0,
    agents: slice = slice(None),
) -> Statistics:
    """Statistics of responses[agent][dialogue] in states[dialogue]; with a signal also adds the actors' gradients.

    With `signal` (n_agents, n_dialogues), the gradient of -Σ_b [signal_ib log π_i(a_ib | s_b) - kl_coefficient KL_ib]
    is added to `adapters.parameters.grad`: row i holds minus agent i's direction of Algorithm 1, line 16, before the
    division by the number of samples.
    """
    n_agents, n_dialogues = len(responses), len(states)
    first_agent = agents.start or 0
    shape = (n_agents, n_dialogues)
    result = Statistics(*(torch.zeros(shape, device=model.device) for _ in range(3)))
    longest = max(len(r) for row in responses for r in row) + max(map(len, states))
    for rows, columns in blocks(n_agents, n_dialogues, TOKENS_PER_PASS // longest):
        tokens, mask = _right_pad([r for agent in responses[rows] for r in agent[columns]], pad, model.device)
        block_states = list(states[columns]) * (rows.stop - rows.start)
        with torch.no_grad(), adapters.use(None):
            divergence = _log_softmax(_base_logits(model, block_states, tokens, mask, pad), temperature)
        with torch.set_grad_enabled(signal is not None):
            with adapters.use(slice(first_agent + rows.start, first_agent + rows.stop)):
                logits = _response_logits(model, states[columns], tokens, mask, pad, rows.stop - rows.start)
            with torch.no_grad():
                log_policy = _log_softmax(logits, temperature)
                policy = log_policy.exp()
                divergence.neg_().add_(log_policy)  # log π - log base
                kl = torch.linalg.vecdot(policy, divergence)
                block_shape = (rows.stop - rows.start, -1)
                log_probability = log_policy.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
                result.log_probability[rows, columns] = _token_sum(log_probability, mask).view(block_shape)
                result.entropy[rows, columns] = _mean_entropy(policy, log_policy, mask).view(block_shape)
                result.kl[rows, columns] = _token_sum(kl, mask).view(block_shape)
            if signal is not None:
                weight = signal[rows, columns].reshape(-1, 1).to(kl)
                # Row by row: d(-log π_a)/dz = π - onehot_a and dKL/dz = π (log π - log base - KL), z = logits / T.
                gradient = (
                    divergence.sub_(kl.unsqueeze(-1)).mul_(kl_coefficient).add_(weight.unsqueeze(-1)).mul_(policy)
                )
                gradient.scatter_add_(-1, tokens.unsqueeze(-1), -weight.expand_as(kl).unsqueeze(-1))
                gradient.mul_((mask / temperature).unsqueeze(-1))
                adapters.backward(logits, gradient.to(logits.dtype))
    return result


@torch.no_grad()
def base_entropy(
    model: PreTrainedModel,
    adapters: StackedAdapters,
    states: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float,
    pad: int,
) -> Tensor:
    """Mean entropy, in nats, of the base model along responses[agent][dialogue]: (n_agents, n_dialogues)."""
    n_agents, n_dialogues = len(responses), len(states)
    result = torch.zeros(n_agents, n_dialogues, device=model.device)
    longest = max(len(r) for row in responses for r in row) + max(map(len, states))
    for rows, columns in blocks(n_agents, n_dialogues, TOKENS_PER_PASS // longest):
        tokens, mask = _right_pad([r for agent in responses[rows] for r in agent[columns]], pad, model.device)
        with adapters.use(None):
            logits = _base_logits(model, list(states[columns]) * (rows.stop - rows.start), tokens, mask, pad)
        log_policy = _log_softmax(logits, temperature)
        result[rows, columns] = _mean_entropy(log_policy.exp(), log_policy, mask).view(rows.stop - rows.start, -1)
    return result


def blocks(n_agents: int, n_dialogues: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles of at most `rows` cells (at least one) that tile the (agents x dialogues) grid; agents together."""
    agents_per_block = max(1, min(n_agents, rows))
    dialogues_per_block = max(1, min(n_dialogues, rows // agents_per_block))
    for agent in range(0, n_agents, agents_per_block):
        for dialogue in range(0, n_dialogues, dialogues_per_block):
            yield (
                slice(agent, min(agent + agents_per_block, n_agents)),
                slice(dialogue, min(dialogue + dialogues_per_block, n_dialogues)),
            )


def _right_pad(responses: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Response ids and mask, both (rows, longest), with the padding on the right."""
    longest = max(map(len, responses))
    tokens = torch.tensor([[*r, *[pad] * (longest - len(r))] for r in responses], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in responses], device=device)
    return tokens, mask


def _response_logits(
    model: PreTrainedModel, states: Sequence[Sequence[int]], tokens: Tensor, mask: Tensor, pad: int, n_policies: int
) -> Tensor:
    """Logits that predict each response token, (rows, T, vocabulary); none are computed for prompt tokens.

    Rows are n_policies times the states. The last prompt token and every response token but the last predict the
    response. What all states begin with is read once per policy; the gradient through it is the sum over the rows.
    """
    cache, shared = read_beginning(model, states, n_policies)
    state_ids, state_mask = left_pad([state[shared:] for state in states] * n_policies, pad, model.device)
    beginning = state_mask.new_ones(len(state_mask), shared)
    attention = torch.cat([beginning, state_mask, mask[:, :-1]], dim=-1)
    return model(
        input_ids=torch.cat([state_ids, tokens[:, :-1]], dim=-1),
        attention_mask=attention,
        position_ids=positions(attention)[:, shared:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=tokens.shape[1],
    ).logits


def _base_logits(
    model: PreTrainedModel, states: Sequence[Sequence[int]], tokens: Tensor, mask: Tensor, pad: int
) -> Tensor:
    """As `_response_logits`, for rows of one policy and without gradients: each distinct state is read once."""
    first, cache, state_mask = read_prompts(model, states, 1, pad)
    if tokens.shape[1] == 1:
        return first.unsqueeze(1)
    attention = torch.cat([state_mask, mask[:, :-1]], dim=-1)
    rest = model(
        input_ids=tokens[:, :-1],
        attention_mask=attention,
        position_ids=positions(attention)[:, state_mask.shape[1] :],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return torch.cat([first.unsqueeze(1), rest], dim=1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def _mean_entropy(policy: Tensor, log_policy: Tensor, mask: Tensor) -> Tensor:
    return -_token_sum(torch.linalg.vecdot(policy, log_policy), mask) / mask.sum(-1)


def _token_sum(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1)
