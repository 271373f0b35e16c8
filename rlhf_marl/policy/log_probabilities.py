"""Log-probabilities, entropy and KL of sampled responses, and the policy gradient through the stacked adapters."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rlhf_marl.algorithm.objectives import importance_weight, policy_gradient
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import tempered
from rlhf_marl.policy.padding import left_pad, positions, right_pad
from rlhf_marl.policy.prefix_cache import PrefixCache, extend, prefill, shared_tokens, with_room

# Activation memory grows with the tokens of a microbatch: the shared prefix once per agent, plus the rest of each row.
# Above this many tokens the (agents x dialogues) grid is split, so memory does not grow with the number of agents.
# Gradients are accumulated over the microbatches. A GPU needs more tokens to be busy.
TOKENS_PER_MICROBATCH = {"cpu": 512, "mps": 512, "cuda": 4096}
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # see algorithm/objectives.py
# Positions per chunk, so that few distributions over the vocabulary are in memory in addition to the logits.
POSITIONS = {"cpu": 64, "mps": 64, "cuda": 2048}


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per response, each (n_agents, n_dialogues).

    Attributes:
        log_probability: log π(a | s), the sum over the response's tokens, at the sampling temperature.
        entropy: mean over tokens of the policy's entropy, in nats.
        kl: sum over tokens of KL(π || base) at the sampled prefixes, in nats. Each term is exact over the vocabulary,
            so the sum is an unbiased estimate of the response's KL divergence.
        importance_weight: π(a | s) / π_old(a | s), 1 where the policy is the one that sampled.
    """

    log_probability: Tensor
    entropy: Tensor
    kl: Tensor
    importance_weight: Tensor


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of neighbouring agents as one."""
    names = [field.name for field in fields(Statistics)]
    return Statistics(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def evaluate_responses(
    model: PreTrainedModel,
    adapters: StackedAdapters,
    prompts: Sequence[Sequence[Sequence[int]]],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float,
    pad: int,
    signal: Tensor | None = None,
    kl_coefficient: float | Tensor = 0.0,
    entropy_coefficient: Tensor | None = None,
    agents: slice | None = slice(None),
    prefixes: PrefixCache | None = None,
    old_log_probabilities: Sequence[Sequence[Sequence[float]]] | None = None,
    objective: Objective = policy_gradient,
    learned: Tensor | None = None,
    tokens_per_pass: int | None = None,
) -> Statistics:
    """Statistics of responses[agent][dialogue] to prompts[agent][dialogue]; with a signal, also adds actors' gradients.

    With `signal` (n_agents, n_dialogues), minus the sum over dialogues of Σ_t w_t ∇log π_i(a_t) - β Σ_t ∇KL_t
    + η Σ_t ∇H_t is added to row i of `adapters.parameters.grad`: the negative of agent i's direction in Algorithm 1,
    line 16, before division by the number of samples. β is `kl_coefficient`. `objective` computes w_t from the signal
    of token t, which is the given one minus β Σ_{l > t} KL_l, because token t determines the prefixes of the later
    tokens. Without that term the direction would only be the gradient of the KL at fixed prefixes, not of the
    response's KL divergence. η is `entropy_coefficient`. The entropies H_t are taken at fixed prefixes: with the later
    tokens' entropies in the signal, longer answers would be rewarded.

    Args:
        kl_coefficient: one for all agents, or (n_agents,).
        entropy_coefficient: (n_agents,); None: 0.
        agents: whose adapters gave the responses; None: the base model, whose KL is 0.
        prefixes: prefix cache for a prompt that all rows share; the base model reads it once for many iterations.
        old_log_probabilities: of each token under the policy that sampled it, shaped as `responses`; None: the policy
            is the one that sampled.
        learned: (n_agents, n_dialogues) bool, the responses whose gradients are added; None: all.
        tokens_per_pass: most tokens of a microbatch; None: TOKENS_PER_MICROBATCH of the device.
    """
    n_agents, n_dialogues = len(responses), len(responses[0])
    dtype = torch.promote_types(model.dtype, torch.float32)
    result = Statistics(*(torch.zeros(n_agents, n_dialogues, dtype=dtype, device=model.device) for _ in range(4)))
    most = max(len(r) for row in responses for r in row)
    longest = most + max(len(prompt) for row in prompts for prompt in row)
    beta = torch.as_tensor(kl_coefficient, device=model.device).reshape(-1, 1).expand(n_agents, n_dialogues)
    eta: Tensor | None = None
    if entropy_coefficient is not None:
        eta = entropy_coefficient.to(model.device).unsqueeze(-1).expand(n_agents, n_dialogues)
    prefix: SharedPrefix | None = None
    shared = shared_tokens(model, prompts) if agents is not None else 0
    with torch.inference_mode(), adapters.use(None):
        reading = ReferencePrefill(model, prompts, pad, room=most, prefixes=prefixes or PrefixCache())
    most_tokens = tokens_per_pass or TOKENS_PER_MICROBATCH[model.device.type]
    for rows, columns in microbatches(n_agents, n_dialogues, shared, longest - shared, most_tokens):
        tokens, mask = right_pad([r for agent in responses[rows] for r in agent[columns]], pad, model.device)
        old: Tensor | None = None
        if old_log_probabilities is not None:
            old, _ = right_pad(
                [r for agent in old_log_probabilities[rows] for r in agent[columns]], 0.0, model.device, dtype
            )
        with torch.inference_mode(), adapters.use(None):
            base = reading.logits(model, rows, columns, tokens, mask)
        with torch.set_grad_enabled(signal is not None):
            if agents is None:
                logits = base
            else:
                first_agent = agents.start or 0
                with adapters.use(slice(first_agent + rows.start, first_agent + rows.stop)):
                    if columns.start == 0:  # the first microbatch of these agents
                        prefix = SharedPrefix(model, [prompt[0][:shared] for prompt in prompts[rows]])
                    assert prefix is not None
                    asked = [of_agent[columns] for of_agent in prompts[rows]]
                    logits = response_logits(model, prefix, asked, tokens, mask, pad)
            # In place: base becomes log π - log base, then the gradient with respect to the logits.
            log_probability, entropy, kl = _token_statistics(logits.detach(), base, tokens, mask, temperature)
            old = log_probability if old is None else old
            block_shape = (rows.stop - rows.start, -1)
            result.log_probability[rows, columns] = log_probability.sum(-1).view(block_shape)
            result.entropy[rows, columns] = (entropy.sum(-1) / mask.sum(-1)).view(block_shape)
            result.kl[rows, columns] = kl.sum(-1).view(block_shape)
            result.importance_weight[rows, columns] = importance_weight(log_probability, old).view(block_shape)
            if signal is not None:
                assert prefix is not None  # gradients are those of agents
                of_response = signal[rows, columns].reshape(-1, 1).to(kl)
                of_kl = beta[rows, columns].reshape(-1, 1).to(kl)
                of_entropy = None if eta is None else eta[rows, columns].reshape(-1, 1).to(kl)
                later_kl = kl.sum(-1, keepdim=True) - kl.cumsum(-1)
                weight = objective(log_probability, old, of_response - of_kl * later_kl)
                if learned is not None:
                    mask = mask * learned[rows, columns].reshape(-1, 1).to(mask)
                _logit_gradient(
                    logits.detach(), base, kl, entropy, tokens, mask, weight, temperature, of_kl, of_entropy
                )
                adapters.backward(logits, base)
                if columns.stop == n_dialogues:  # the last microbatch of these agents
                    prefix.backward()
    return result


def microbatches(
    n_agents: int, n_dialogues: int, shared: int, rest: int, most_tokens: int
) -> Iterator[tuple[slice, slice]]:
    """Tile the (agents x dialogues) grid with rectangles of at most `most_tokens` tokens, or of one cell.

    An agent costs `shared` tokens, a cell `rest`. Each microbatch takes as many agents as fit. All dialogues of one
    group of agents come before the next group.
    """
    agents_per_block = max(1, min(n_agents, most_tokens // (shared + rest)))
    rows = (most_tokens - agents_per_block * shared) // rest
    dialogues_per_block = max(1, min(n_dialogues, rows // agents_per_block))
    for agent in range(0, n_agents, agents_per_block):
        for dialogue in range(0, n_dialogues, dialogues_per_block):
            yield (
                slice(agent, min(agent + agents_per_block, n_agents)),
                slice(dialogue, min(dialogue + dialogues_per_block, n_dialogues)),
            )


@final
class SharedPrefix:
    """Prefix that all prompts of a policy share: prefilled once per policy and reused by several microbatches.

    Microbatches read a detached copy, which accumulates their gradients. `backward` sends the sum through the prefill.

    Attributes:
        length: tokens in the prefix.
    """

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Sequence[int]]) -> None:
        """prefixes: of each policy, all of one length, which may be 0."""
        self._cache, self.length = DynamicCache(config=model.config), len(prefixes[0])
        if self.length:
            extend(model, prefixes, self._cache)
        self._read = [t for layer in self._cache.layers if self.length for t in (layer.keys, layer.values)]
        self._copies = [t.detach().requires_grad_(t.requires_grad) for t in self._read]

    def cache(self, n: int) -> DynamicCache:
        """The prefix cache for a microbatch of n rows per policy."""
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer, keys, values in zip(cache.layers, self._copies[::2], self._copies[1::2], strict=False):
            layer.keys, layer.values = keys.repeat_interleave(n, dim=0), values.repeat_interleave(n, dim=0)
        return cache

    def backward(self) -> None:
        """Backpropagate the gradients that all microbatches accumulated at the prefix."""
        pairs = [(t, c.grad) for t, c in zip(self._read, self._copies, strict=True) if c.grad is not None]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [gradient for _, gradient in pairs])


def response_logits(
    model: PreTrainedModel,
    prefix: SharedPrefix,
    prompts: Sequence[Sequence[Sequence[int]]],
    tokens: Tensor,
    mask: Tensor,
    pad: int,
) -> Tensor:
    """Logits that predict each response token, (rows, T, vocabulary); none are computed for other prompt tokens.

    Rows are those of prompts[policy][row]. The response is predicted from the last prompt token and all response tokens
    except the last.
    """
    shared = prefix.length
    prompt_ids, prompt_mask = left_pad([prompt[shared:] for row in prompts for prompt in row], pad, model.device)
    attention = torch.cat([prompt_mask.new_ones(len(prompt_mask), shared), prompt_mask, mask[:, :-1]], dim=-1)
    return model(
        input_ids=torch.cat([prompt_ids, tokens[:, :-1]], dim=-1),
        attention_mask=attention,
        position_ids=positions(attention)[:, shared:],
        past_key_values=prefix.cache(len(prompts[0])),
        use_cache=True,
        logits_to_keep=tokens.shape[1],
    ).logits[:, -tokens.shape[1] :]  # some models give all, whatever is asked


@final
class ReferencePrefill:
    """Prefill of the prompts by the reference model, once for all agents with the same; reused by several microbatches.

    Prompts are [agent][dialogue].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[Sequence[int]]],
        pad: int,
        *,
        room: int,
        prefixes: PrefixCache,
    ) -> None:
        """room: maximum tokens of a response."""
        asked = prompts[:1] if all(of_agent == prompts[0] for of_agent in prompts) else prompts
        whole = [prompt for of_agent in asked for prompt in of_agent]
        places = torch.arange(len(whole), device=model.device).view(len(asked), -1)
        self._places = places.expand(len(prompts), -1)  # [agent][dialogue] -> row of the cache
        read = [prompt[:-1] for prompt in whole]  # the last token, which predicts the response, is fed with it
        alike = len(set(map(tuple, read))) == 1
        rest = [prompt[-1:] for prompt in whole]
        self._mask = torch.zeros(len(whole), 0, dtype=torch.long, device=model.device)
        if not all(read):  # a prompt has only one token
            self._cache, rest = DynamicCache(config=model.config), whole
        elif alike and (cached_prefix := prefixes.read(model, read[0])) is not None:
            self._cache = with_room(cached_prefix, len(whole), room)
            self._mask = self._mask.new_ones(len(whole), len(read[0]))
        else:
            _, self._cache, self._mask = prefill(model, read, len(asked), pad, room=room)
        self._rest, self._rest_mask = left_pad(rest, pad, model.device)

    def logits(self, model: PreTrainedModel, agents: slice, dialogues: slice, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `response_logits`, for the base model and without gradients.

        Rows are those of prompts[agents][dialogues], agent by agent.
        """
        rows = self._places[agents, dialogues].flatten()
        attention = torch.cat([self._mask[rows], self._rest_mask[rows], mask[:, :-1]], dim=-1)
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        cache.batch_select_indices(rows)
        return model(
            input_ids=torch.cat([self._rest[rows], tokens[:, :-1]], dim=-1),
            attention_mask=attention,
            position_ids=positions(attention)[:, self._mask.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=tokens.shape[1],
        ).logits[:, -tokens.shape[1] :]


@torch.inference_mode()
def _token_statistics(
    logits: Tensor, base: Tensor, tokens: Tensor, mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(a), entropy and KL(π || base) at each token, each (rows, T), 0 where the response has ended.

    logits, base: (rows, T, vocabulary) of the policy and of the base model; tokens, mask: (rows, T). `base` is
    overwritten by log π - log base. Positions are processed in chunks to bound the size of intermediates.
    """
    flat_logits, flat_base, flat_tokens = logits.flatten(0, 1), base.flatten(0, 1), tokens.reshape(-1, 1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    result = torch.empty(3, len(flat_tokens), dtype=dtype, device=logits.device)
    for part in _chunks(flat_tokens):
        log_policy = _log_softmax(flat_logits[part], temperature)
        policy = log_policy.exp()
        divergence = _log_softmax(flat_base[part], temperature).neg_().add_(log_policy)
        result[0, part] = log_policy.gather(-1, flat_tokens[part]).squeeze(-1)
        result[1, part] = -torch.linalg.vecdot(policy, log_policy)
        result[2, part] = torch.linalg.vecdot(policy, divergence)
        flat_base[part] = divergence
    log_probability, entropy, kl = result.view(3, *tokens.shape) * mask
    return log_probability, entropy, kl


@torch.inference_mode()
def _logit_gradient(
    logits: Tensor,
    divergence: Tensor,
    kl: Tensor,
    entropy: Tensor,
    tokens: Tensor,
    mask: Tensor,
    weight: Tensor,
    temperature: float,
    kl_coefficient: Tensor,
    entropy_coefficient: Tensor | None,
) -> None:
    """Overwrite `divergence`, log π - log base, by the gradient of β KL - η H - w log π(a).

    With respect to the logits z: dKL/dz = π (log π - log base - KL), dH/dz = -π (log π + H) and
    d(-log π_a)/dz = π - onehot_a, divided by the temperature. logits, divergence: (rows, T, vocabulary); β and η:
    (rows, 1); the others (rows, T). w (`weight`) is a constant.
    """
    flat_logits, flat_divergence, flat_tokens = logits.flatten(0, 1), divergence.flatten(0, 1), tokens.reshape(-1, 1)
    scale = (mask / temperature).view(-1, 1)
    flat_weight, flat_kl, flat_entropy = weight.reshape(-1, 1), kl.reshape(-1, 1), entropy.reshape(-1, 1)
    of_kl = kl_coefficient.expand_as(kl).reshape(-1, 1)
    of_entropy = None if entropy_coefficient is None else entropy_coefficient.expand_as(kl).reshape(-1, 1)
    for part in _chunks(flat_tokens):
        log_policy = _log_softmax(flat_logits[part], temperature)
        w = flat_weight[part]
        factor = (flat_divergence[part] - flat_kl[part]).mul_(of_kl[part]).add_(w)
        if of_entropy is not None:
            factor += (log_policy + flat_entropy[part]).mul_(of_entropy[part])
        gradient = log_policy.exp_().mul_(factor)
        gradient.scatter_add_(-1, flat_tokens[part], -w)
        flat_divergence[part] = gradient.mul_(scale[part])


def _chunks(tokens: Tensor) -> Iterator[slice]:
    size = POSITIONS[tokens.device.type]
    return (slice(begin, begin + size) for begin in range(0, len(tokens), size))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(tempered(logits, temperature), dim=-1)
