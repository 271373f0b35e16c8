"""Decode steps on a GPU: a straight line of few kernels, recorded once as a CUDA graph and replayed for every token.

A decode step of the module tree launches more than a thousand small kernels from Python, and the GPU waits for them.
Here, products that read the same input are one product, to which all agents' A matrices are appended as further rows,
and everything between two products is one kernel (decoder_kernels.py). Sampling is part of the step. All that returns
to the host is, every few tokens, whether all rows have ended.

The module tree (prefix_cache.py) reads the prompts. It also decodes with models of other architectures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rlhf_marl.policy import decoder_reference
from rlhf_marl.policy.adapters import StackedAdapters, StackedLinear
from rlhf_marl.policy.generation import Generated, fill_absent, sample, trimmed
from rlhf_marl.policy.llama_like import base_of, groups_of, head_size, is_llama_like, linears_of, norms_of
from rlhf_marl.policy.prefix_cache import prefill

_ROTATIONS = ("default", "linear", "llama3", "yarn")  # those that do not depend on the length of the sequence
_HEAD_SIZES = (16, 32, 64, 128, 256)
_CAPACITY = 64  # cache lengths are multiples of this, so that one recorded step serves several prompt lengths
_ALIGNED = 64  # rows that are appended to a product's weights; other numbers make some products slower
_LOOK = 16  # steps between two looks at whether all rows have ended
_MOST_RECORDED = 4  # recorded steps that are kept, one per shape, each with its cache


@final
@dataclass(frozen=True, slots=True)
class Fused:
    """Linear layers that read the same input, as one: their weights, then the A matrices of every agent.

    Attributes:
        weight: (out + n_agents * n_parts * rank, in), then rows of zeros. The layers' own weights are views of the
            first rows.
        bias: as many numbers as the weight has rows, or None.
        b: (n_agents, rank, out), the layers' scaled B matrices side by side.
        parts: the layers.
        widths: width of each layer's output; `out` is their sum.
    """

    weight: Tensor
    bias: Tensor | None
    b: Tensor
    parts: list[nn.Module]
    widths: list[int]

    def product(self, x: Tensor, adapted: bool) -> Tensor:
        """The layers' outputs (rows, out) and, if adapted, behind them x A of all agents and layers, and zeros."""
        end = len(self.weight) if adapted else sum(self.widths)
        return nn.functional.linear(x, self.weight[:end], None if self.bias is None else self.bias[:end])

    def refresh(self) -> None:
        """Read the adapters again."""
        n_agents, rank, out = self.b.shape
        appended = self.weight[out : out + n_agents * len(self.parts) * rank]
        a = appended.view(n_agents, len(self.parts), rank, self.weight.shape[1])
        for g, (part, b) in enumerate(zip(self.parts, self.b.split(self.widths, dim=-1), strict=True)):
            if isinstance(part, StackedLinear):
                a[:, g].copy_(part.a.detach().mT)
                torch.mul(part.b.detach(), part.scaling, out=b)


@final
@dataclass(frozen=True, slots=True)
class _Layer:
    """One transformer layer's products, and the weights of the norms before and within it."""

    qkv: Fused
    output: Fused
    gate_up: Fused
    down: Fused
    first_norm: Tensor
    second_norm: Tensor


@final
@dataclass(slots=True)
class _Steps:
    """The state of decode steps of one shape, at fixed addresses; all that a recorded step reads or writes.

    Attributes:
        keys, values: (layers, rows, heads, capacity, size).
        mask: (rows, capacity), which places of the cache hold a token of the row or will.
        rotation: cosine and sine of every position, (capacity, size) each.
        slot: (1,), the place of the cache that the next step writes.
        step: (1,), number of tokens sampled.
        token, position, ended: (rows,), of the newest token.
        uniforms, sampled, log_probabilities: (rows, max_new_tokens).
        ends: the stop tokens.
        replay: one step.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    rotation: tuple[Tensor, Tensor]
    slot: Tensor
    step: Tensor
    token: Tensor
    position: Tensor
    ended: Tensor
    uniforms: Tensor
    sampled: Tensor
    log_probabilities: Tensor
    ends: Tensor
    greedy: bool
    temperature: float
    replay: Callable[[], None] = field(default=lambda: None)

    def begin(self, cache: DynamicCache, mask: Tensor, uniforms: Tensor | None) -> None:
        """Copy the prompts' keys and values, (rows, heads, length, size) per layer, and their mask (rows, length)."""
        length = mask.shape[1]
        for keys, values, layer in zip(self.keys, self.values, cache.layers, strict=True):
            keys[:, :, :length] = layer.keys
            values[:, :, :length] = layer.values
        self.mask.fill_(True)
        self.mask[:, :length] = mask.bool()
        self.slot.fill_(length)
        self.step.zero_()
        self.position.copy_(mask.sum(-1))
        self.ended.zero_()
        if uniforms is not None:
            self.uniforms.copy_(uniforms)

    def take(self, logits: Tensor) -> None:
        """Sample the next token of every row from its logits (rows, vocabulary)."""
        uniforms = None if self.greedy else self.uniforms.index_select(1, self.step).squeeze(1)
        token, log_probability = sample(logits, uniforms, self.temperature)
        self.token.copy_(token)
        self.sampled.index_copy_(1, self.step, token.unsqueeze(1))
        self.log_probabilities.index_copy_(1, self.step, log_probability.unsqueeze(1))
        self.ended.logical_or_((token.unsqueeze(-1) == self.ends).any(-1))
        self.step.add_(1)


@final
class Decoder:
    """Generation by a Llama-like model with stacked adapters: the same policy as the module tree's.

    The weights of the model's linear layers become views of the fused ones.
    """

    def __init__(self, model: PreTrainedModel, adapters: StackedAdapters | None) -> None:
        shape = (adapters.n_agents, adapters.rank) if adapters else (0, 1)
        self._model: Any = model
        self._n_agents = shape[0]
        self._layers = []
        for layer in self._model.model.layers:
            qkv, output, gate_up, down = (_fuse(group, *shape) for group in groups_of(layer))
            self._layers.append(_Layer(qkv, output, gate_up, down, *norms_of(layer)))
        self._steps: dict[tuple[object, ...], _Steps] = {}
        self._ops: Any = decoder_reference
        if model.device.type == "cuda":
            from rlhf_marl.policy import decoder_kernels

            self._ops = decoder_kernels

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the model's forward pass is what `_logits` computes, with or without adapters."""
        return (
            is_llama_like(model)
            and model.config.rope_parameters.get("rope_type") in _ROTATIONS
            and head_size(model) in _HEAD_SIZES
            and all(type(linear) is nn.Linear for linear in linears_of(model))
        )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_tokens: Sequence[int],
        uniforms: Tensor | None = None,
        temperature: float = 1.0,
        agents: slice | None = None,
        cached_prefix: DynamicCache | None = None,
    ) -> Generated:
        """As `generation.generate`, by these agents' policies; None: by the base model."""
        active = range(self._n_agents)[agents] if agents is not None else range(0)
        logits, cache, mask = prefill(
            self._model,
            prompts,
            max(1, len(active)),
            stop_tokens[0],
            room=max_new_tokens - 1,
            cached_prefix=cached_prefix,
        )
        for layer in self._layers if active else ():
            for fused in (layer.qkv, layer.output, layer.gate_up, layer.down):
                fused.refresh()
        steps = self._steps_for(mask.shape, max_new_tokens, active, uniforms is None, temperature, tuple(stop_tokens))
        steps.begin(cache, mask, uniforms)
        steps.take(logits)
        for step in range(1, max_new_tokens):
            if step % _LOOK == 0 and bool(steps.ended.all()):
                break
            steps.replay()
        return trimmed(steps.sampled, steps.log_probabilities, stop_tokens)

    def _steps_for(
        self,
        shape: tuple[int, ...],
        max_new_tokens: int,
        active: range,
        greedy: bool,
        temperature: float,
        ends: tuple[int, ...],
    ) -> _Steps:
        """Steps of this shape, recorded now or earlier."""
        rows, length = shape
        capacity = -(-(length + max_new_tokens) // _CAPACITY) * _CAPACITY
        key = (rows, capacity, max_new_tokens, active, greedy, temperature, ends)
        steps = self._steps.pop(key, None)
        if steps is None:
            while len(self._steps) >= _MOST_RECORDED:
                del self._steps[next(iter(self._steps))]  # the one not used for longest
            steps = self._new_steps(rows, capacity, max_new_tokens, greedy, temperature, ends)
            steps.replay = _recorded(partial(self._step, steps, active), steps)
        self._steps[key] = steps
        return steps

    def _new_steps(
        self, rows: int, capacity: int, new_tokens: int, greedy: bool, temperature: float, ends: tuple[int, ...]
    ) -> _Steps:
        config, device, dtype = self._model.config, self._model.device, self._model.dtype
        cache = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, head_size(self._model))
        positions = torch.arange(capacity, device=device).unsqueeze(0)
        cosine, sine = self._model.model.rotary_emb(torch.empty(1, device=device, dtype=dtype), positions)
        return _Steps(
            keys=torch.zeros(cache, device=device, dtype=dtype),
            values=torch.zeros(cache, device=device, dtype=dtype),
            mask=torch.ones(rows, capacity, dtype=torch.bool, device=device),
            rotation=(cosine[0].contiguous(), sine[0].contiguous()),
            slot=torch.zeros(1, dtype=torch.long, device=device),
            step=torch.zeros(1, dtype=torch.long, device=device),
            token=torch.zeros(rows, dtype=torch.long, device=device),
            position=torch.zeros(rows, dtype=torch.long, device=device),
            ended=torch.zeros(rows, dtype=torch.bool, device=device),
            uniforms=torch.full((rows, new_tokens), 0.5, dtype=torch.float64, device=device),
            sampled=torch.zeros(rows, new_tokens, dtype=torch.long, device=device),
            log_probabilities=torch.zeros(rows, new_tokens, device=device),
            ends=torch.tensor(ends, device=device),
            greedy=greedy,
            temperature=temperature,
        )

    def _step(self, steps: _Steps, active: range) -> None:
        """Feed the newest tokens and sample the next ones."""
        steps.take(self._logits(steps, active))

    def _logits(self, steps: _Steps, active: range) -> Tensor:
        """Feed the newest tokens; the logits of the next ones, (rows, vocabulary). Advances slot and position."""
        ops, model, adapted = self._ops, self._model, len(active) > 0
        epsilon, n_heads = model.config.rms_norm_eps, model.config.num_attention_heads
        hidden = nn.functional.embedding(steps.token, model.model.embed_tokens.weight)
        x = ops.norm(hidden, self._layers[0].first_norm, epsilon)
        after = [layer.first_norm for layer in self._layers[1:]] + [model.model.norm.weight]
        for layer, keys, values, norm in zip(self._layers, steps.keys, steps.values, after, strict=True):
            y = layer.qkv.product(x, adapted)
            queries = ops.rotate_and_store(
                y, layer.qkv, active, steps.rotation, steps.position, steps.slot, keys, values, n_heads
            )
            attended = ops.attend(queries, keys, values, steps.mask, steps.slot)
            y = layer.output.product(attended, adapted)
            x = ops.add_and_norm(hidden, y, layer.output, active, layer.second_norm, epsilon)
            y = layer.gate_up.product(x, adapted)
            x = ops.gate(y, layer.gate_up, active)
            y = layer.down.product(x, adapted)
            x = ops.add_and_norm(hidden, y, layer.down, active, norm, epsilon)
        steps.slot.add_(1)
        steps.position.add_(1)
        logits = nn.functional.linear(x, model.get_output_embeddings().weight)
        fill_absent(model, logits)
        return logits


def _recorded(step: Callable[[], None], steps: _Steps) -> Callable[[], None]:
    """The step as a replayed CUDA graph, or itself on other devices.

    It runs twice before it is recorded: libraries allocate, and Triton compiles, at first use.
    """
    if steps.keys.device.type != "cuda":
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            steps.slot.zero_()
            steps.step.zero_()
            steps.position.zero_()
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _fuse(parts: list[Any], n_agents: int, rank: int) -> Fused:
    """Fuse the layers' weights; each layer's own weight and bias become views."""
    linears = [base_of(part) for part in parts]
    widths = [linear.out_features for linear in linears]
    like, further = linears[0].weight, -(-n_agents * len(parts) * rank // _ALIGNED) * _ALIGNED
    weight = torch.cat([*(linear.weight.detach() for linear in linears), like.new_zeros(further, like.shape[1])])
    bias = None
    if any(linear.bias is not None for linear in linears):
        of_parts = [
            like.new_zeros(n) if m.bias is None else m.bias.detach() for n, m in zip(widths, linears, strict=True)
        ]
        bias = torch.cat([*of_parts, like.new_zeros(further)])
    begin = 0
    for linear, width in zip(linears, widths, strict=True):
        linear.weight.data = weight[begin : begin + width]
        if linear.bias is not None and bias is not None:
            linear.bias.data = bias[begin : begin + width]
        begin += width
    return Fused(weight, bias, like.new_zeros(n_agents, rank, sum(widths)), parts, widths)
