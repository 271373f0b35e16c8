"""Log-probabilities, entropy and KL of sampled responses, and the policy gradient through the stacked adapters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_marl.dialogue.adapters import StackedAdapters
from rlhf_marl.dialogue.generation import left_pad, positions

# Activations of one backward pass grow with its tokens; above this many the (agents x dialogues) grid is split, so that
# memory stays flat in the number of agents. Gradients add up over the parts.
TOKENS_PER_PASS = 512


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
        active = slice(first_agent + rows.start, first_agent + rows.stop)
        block_responses = [r for agent in responses[rows] for r in agent[columns]]
        block_states = list(states[columns]) * (rows.stop - rows.start)
        with torch.no_grad(), adapters.use(None):
            reference = _log_policy(model, block_states, block_responses, temperature, pad)[0]
        with torch.set_grad_enabled(signal is not None), adapters.use(active):
            log_policy, tokens, mask = _log_policy(model, block_states, block_responses, temperature, pad)
            log_probability = _token_sum(log_policy.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), mask)
            policy = log_policy.exp()
            kl = _token_sum((policy * (log_policy - reference)).sum(-1), mask)
            if signal is not None:
                weights = signal[rows, columns].reshape(-1).to(log_probability)
                adapters.backward((kl_coefficient * kl - weights * log_probability).sum())
        with torch.no_grad():
            entropy = _token_sum(-(policy * log_policy).sum(-1), mask) / mask.sum(-1)
            block_shape = (rows.stop - rows.start, -1)
            result.log_probability[rows, columns] = log_probability.view(block_shape)
            result.entropy[rows, columns] = entropy.view(block_shape)
            result.kl[rows, columns] = kl.view(block_shape)
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


def _log_policy(
    model: PreTrainedModel,
    states: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    pad: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-softmax at each response position, response ids and mask: (rows, T, vocabulary), (rows, T), (rows, T)."""
    state_ids, state_mask = left_pad(states, pad, model.device)
    longest = max(map(len, responses))
    tokens = torch.tensor([list(r) + [pad] * (longest - len(r)) for r in responses], device=model.device)
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in responses], device=model.device)
    attention = torch.cat([state_mask, mask], dim=-1)
    # Logits at the last prompt token and at every response token but the last predict the response.
    logits = model(
        input_ids=torch.cat([state_ids, tokens], dim=-1),
        attention_mask=attention,
        position_ids=positions(attention),
        use_cache=False,
        logits_to_keep=longest + 1,
    ).logits[:, :-1]
    return torch.log_softmax(logits.float() / temperature, dim=-1), tokens, mask


def _token_sum(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(-1)
