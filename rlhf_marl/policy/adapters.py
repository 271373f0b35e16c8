"""LoRA adapters of all agents, stacked over one frozen base model.

Rows of a batch are contiguous by agent: (n_agents * rows_per_agent, ...). Every adapted linear layer adds agent i's
low-rank product to agent i's rows, so generation, log-probabilities and gradients of all agents need one batched pass.
All trainable parameters live in one flat tensor (n_agents, n_params): row i is agent i's adapter.
"""

import logging
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapter_files import (
    CONFIG,
    WEIGHTS,
    Names,
    layers_of,
    read_adapter,
    shortest_names,
    warn_of_other_base,
)
from rlhf_marl.policy.half_linear import HalfLinear
from rlhf_marl.sanitise import printable

_log = logging.getLogger("rlhf_marl")
_ALL = slice(None)
Linear: TypeAlias = nn.Linear | Conv1D
"""Conv1D is GPT-2's linear layer, whose weight is transposed."""
_PLAIN = (nn.Linear, HalfLinear)  # quantised and other linear layers have their own matmul


@final
class _Active:
    """The agents whose adapters are active; shared by all layers of one model."""

    agents: slice | None = None


@final
class StackedLinear(nn.Module):
    """y_i = base(x_i) + scaling x_i A_i B_i for the rows x_i of each active agent i."""

    def __init__(self, base: Linear, active: _Active, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.active = active
        self.scaling = scaling
        # A decode step calls hundreds of packed layers. They have no hooks, so nn.Module.__call__ is bypassed.
        self._multiply = base.forward if type(base) is HalfLinear else base.__call__
        self.a: Tensor  # (n_agents, in, rank), a view of the flat parameters
        self.b: Tensor  # (n_agents, rank, out), a view too

    @property
    def weight(self) -> Tensor:
        """The base's, for models that also use a layer's weight without calling it; as in PEFT, without adapters."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (n_active * rows, ..., in) -> (n_active * rows, ..., out)."""
        agents = self.active.agents
        if agents is None:
            return self._multiply(x)
        a, b = self.a, self.b
        if agents != _ALL:
            a, b = a[agents], b[agents]
        if torch.is_grad_enabled() and type(self.base) in _PLAIN:
            return _StackedProduct.apply(x, self.base, a, b, self.scaling)
        y = self._multiply(x)
        b = b.to(y.dtype)
        low_rank = torch.bmm(x.reshape(a.shape[0], -1, x.shape[-1]), a.to(x.dtype)).to(y.dtype)
        if torch.is_grad_enabled() or not y.is_contiguous():
            return y + (self.scaling * torch.bmm(low_rank, b)).view_as(y)
        y.view(a.shape[0], -1, y.shape[-1]).baddbmm_(low_rank, b, alpha=self.scaling)  # y is used nowhere else
        return y


class _StackedProduct(torch.autograd.Function):
    """x W^T + bias + scaling x A B as one autograd node: fewer passes over activations and their gradients.

    With g the output gradient: dx = g W + scaling (g B^T) A^T, dA = scaling x^T (g B^T), dB = scaling (x A)^T g.
    W and the bias are frozen. All products are in x's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Linear, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        dtype, a, b = a.dtype, a.to(x.dtype), b.to(x.dtype)
        y = base(x)  # autograd is off in here
        low_rank = torch.bmm(x.reshape(a.shape[0], -1, x.shape[-1]), a)
        y.view(a.shape[0], -1, y.shape[-1]).baddbmm_(low_rank, b, alpha=scaling)
        ctx.save_for_backward(x, base.weight, a, b, low_rank)
        ctx.scaling, ctx.dtype = scaling, dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low_rank = ctx.saved_tensors
        g = gradients[0].reshape(a.shape[0], -1, weight.shape[0])
        through = torch.bmm(b, g.mT).mul_(ctx.scaling)  # (scaling g B^T)^T, (n_agents, rank, rows): faster transposed
        of_a = torch.bmm(through, x.reshape(a.shape[0], -1, x.shape[-1])).mT
        of_b = torch.bmm(low_rank.mT, g).mul_(ctx.scaling)
        of_a, of_b = of_a.to(ctx.dtype), of_b.to(ctx.dtype)
        if not ctx.needs_input_grad[0]:
            return None, None, of_a, of_b, None
        of_x = torch.matmul(g, weight).baddbmm_(through.mT, a.mT)
        return of_x.view_as(x), None, of_a, of_b, None


@final
class StackedAdapters:
    """Adds stacked adapters to `model` in place and holds their parameters.

    Attributes:
        parameters: (n_agents, n_params) float32, or float64 if the model is; its `.grad` is a buffer of the same shape
            that backward adds to.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        seeds: Sequence[int],
        *,
        rank: int,
        alpha: float,
        targets: Names,
        where: str,
        exclude: Names | None = None,
        use_rslora: bool = False,
    ) -> None:
        """One adapter per seed, initialised as in PEFT: A uniform in ±1/sqrt(in), B zero.

        The low-rank products are scaled by alpha / rank, with `use_rslora` by alpha / sqrt(rank).

        Args:
            targets: all-linear (all linear layers but the output layer), names of layers, or a regular expression.
            exclude: layers left out, likewise.

        Raises:
            UsageError: a target is not a linear layer of the model.
        """
        self.n_agents = len(seeds)
        self.rank, self.alpha, self.use_rslora = rank, alpha, use_rslora
        self._active = _Active()
        model.requires_grad_(False)
        linears = _targeted(model, targets, exclude, where)
        self._modules, self._linears = [name for name, _ in model.named_modules()], list(_linears(model))
        scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self._layers = {name: StackedLinear(linear, self._active, scaling) for name, linear in linears.items()}
        sizes = [rank * sum(_features(linear)) for linear in linears.values()]
        device, dtype = next(iter(linears.values())).weight.device, torch.promote_types(model.dtype, torch.float32)
        self.parameters = nn.Parameter(torch.zeros(self.n_agents, sum(sizes), device=device, dtype=dtype))
        self.parameters.grad = torch.zeros_like(self.parameters)
        for (name, layer), flat, grad in zip(
            self._layers.items(),
            self.parameters.detach().split(sizes, dim=1),
            self.parameters.grad.split(sizes, dim=1),
            strict=True,
        ):
            _bind(layer, flat, grad, rank)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        for agent, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for layer in self._layers.values():
                inputs, _ = _features(layer.base)
                bound = 1 / math.sqrt(inputs)
                draws = torch.empty(inputs, rank).uniform_(-bound, bound, generator=generator)
                layer.a.data[agent] = draws.to(layer.a)

    @contextmanager
    def use(self, agents: slice | None) -> Iterator[None]:
        """Context in which rows belong to these agents (contiguous, in order); None disables all adapters."""
        before, self._active.agents = self._active.agents, agents
        try:
            yield
        finally:
            self._active.agents = before

    def backward(self, outputs: Tensor, gradient: Tensor | None = None) -> None:
        """Backpropagate from a scalar, or from outputs given their `gradient`; adds to `parameters.grad`."""
        with warnings.catch_warnings():
            # A layer's slice of the flat tensor is not contiguous; torch warns about that once.
            warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
            torch.autograd.backward(outputs, gradient)

    def save(self, agent: int, folder: Path, base_model: str) -> None:
        """Write one agent's adapter in PEFT's format."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: values.contiguous().cpu() for name, values in self._weights(agent).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        config = PeftLoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            use_rslora=self.use_rslora,
            target_modules=shortest_names(self._layers, self._modules),
            fan_in_fan_out=all(isinstance(layer.base, Conv1D) for layer in self._layers.values()),
            base_model_name_or_path=base_model,
            inference_mode=True,
        )
        config.save_pretrained(str(folder))

    def load(self, agent: int, folder: Path, where: str, base: Sequence[str] = ()) -> None:
        """Read one agent's adapter from a PEFT folder.

        Args:
            base: names of the model; warns if the adapter names another one.

        Raises:
            UsageError: not a LoRA adapter folder, other layers or settings, or a field that is not supported.
        """
        settings = {
            "r": ("lora.rank", self.rank),
            "lora_alpha": ("lora.alpha", self.alpha),
            "use_rslora": ("lora.use_rslora", self.use_rslora),
        }
        config, weights = read_adapter(folder, where, settings)
        theirs = layers_of(config, self._modules, self._linears, f"{where}: {str(folder / CONFIG)!r}")
        expected = self._weights(agent)
        if odd := self._layers.keys() ^ theirs or weights.keys() ^ expected.keys():
            reason = f"adapts other layers than lora.targets asks for, such as {printable(sorted(odd)[0])}"
            raise UsageError(f"{where}: {str(folder)!r} {reason}")
        for name, values in expected.items():
            if weights[name].shape != values.shape:
                shapes = f"has shape {tuple(weights[name].shape)}; the model needs {tuple(values.shape)}"
                raise UsageError(f"{where}: {str(folder)!r}: {name} {shapes}")
            if not weights[name].isfinite().all():
                raise UsageError(f"{where}: {str(folder)!r}: {name} holds numbers that are not finite")
        for name, values in expected.items():
            values.copy_(weights[name])
        if base:
            warn_of_other_base(config.get("base_model_name_or_path"), base, where)

    def _weights(self, agent: int) -> dict[str, Tensor]:
        """One agent's A and B under PEFT's names and in its shapes: views of the parameters."""
        return {
            f"base_model.model.{name}.lora_{part}.weight": values.data[agent].T
            for name, layer in self._layers.items()
            for part, values in (("A", layer.a), ("B", layer.b))
        }


def _linears(model: PreTrainedModel) -> dict[str, Linear]:
    """All linear layers but the output layer, by full name."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Linear) and layer is not head and _gives_one_tensor(layer)
    }


@torch.no_grad()
def _gives_one_tensor(layer: Linear) -> bool:
    """False for subclasses in models' code whose output is no product, such as the scores and choices of a router."""
    of_model = type(layer).__module__.startswith(("transformers.models.", "transformers_modules."))
    if not of_model or type(layer).forward is nn.Linear.forward:
        return True
    inputs, outputs = _features(layer)
    try:
        y = layer(torch.zeros(1, 1, inputs, dtype=layer.weight.dtype, device=layer.weight.device))
    except Exception:  # the models' code raises many unrelated types
        return False
    return isinstance(y, Tensor) and y.shape == (1, 1, outputs)


def _adaptable(model: PreTrainedModel) -> dict[str, Linear]:
    """The linear layers that an adapter in PEFT's format can name, by full name.

    In some mixtures of experts PEFT takes names such as gate_proj, wherever they are, for the experts' parameters, or
    renames the shared experts when it loads an adapter.
    """
    linears = _linears(model)
    taken = {end for end in {name.rpartition(".")[2] for name in linears} if _names_experts(end, model)}
    keys = {name: f"base_model.model.{name}.lora_A.weight" for name in linears}
    read = convert_peft_adapter_state_dict_for_transformers(
        model, PeftLoraConfig(), {key: torch.empty(0) for key in keys.values()}
    )
    return {
        name: linear for name, linear in linears.items() if name.rpartition(".")[2] not in taken and keys[name] in read
    }


def _names_experts(name: str, model: PreTrainedModel) -> bool:
    config = PeftLoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of several names for one parameter
        return True
    return bool(config.target_parameters)


def _say_what_is_left(model: PreTrainedModel, chosen: Collection[str], left: Collection[str], where: str) -> None:
    """Log which layers of a mixture of experts `all-linear` adapts.

    left: linear layers that PEFT cannot name.
    """
    others = []
    if _has_experts(model):
        others.append("the experts, whose weights are no linear layers")
    if left:
        others.append(f"{_ends(left)}, whose names PEFT takes for the experts'")
    if others:
        _log.warning("%s: lora.targets: all-linear adapts %s; not %s", where, _ends(chosen), "; nor ".join(others))


def _has_experts(model: PreTrainedModel) -> bool:
    """Whether it is a mixture of experts, whose weights are one tensor (experts, ., .)."""
    return any(
        weight.dim() == 3
        for module in model.modules()
        if "Expert" in type(module).__name__
        for weight in module.parameters(recurse=False)
    )


def _ends(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _features(linear: Linear) -> tuple[int, int]:
    """Width of a linear layer's input and output."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def _targeted(model: PreTrainedModel, targets: Names, exclude: Names | None, where: str) -> dict[str, Linear]:
    """The linear layers to adapt, by full name, in the model's order."""
    every, linears, modules = _linears(model), _adaptable(model), [name for name, _ in model.named_modules()]
    if not linears:
        raise UsageError(f"{where}: model.name: a {type(model).__name__} has no linear layers to adapt")
    choice = f"choose from {', '.join(sorted({name.rpartition('.')[2] for name in linears}))}"
    for key, names in (("lora.targets", targets), ("lora.exclude", exclude or [])):
        for name in [names] if isinstance(names, str) else names:
            one = name if isinstance(names, str) else [name]
            if not layers_of({"target_modules": one}, linears, linears, f"{where}: {key}"):
                problem = "is not a linear layer"
                if one == name:
                    problem += " (a string is a regular expression for a layer's whole name)"
                if layers_of({"target_modules": one}, every, every, f"{where}: {key}"):
                    problem = "is a name that PEFT takes for the experts'"
                raise UsageError(f"{where}: {key}: {name!r} {problem}; {choice}")
    wanted = {"target_modules": targets, "exclude_modules": exclude}
    chosen = layers_of(wanted, modules, linears, f"{where}: lora.targets")
    if others := sorted(chosen - linears.keys()):
        problem = "has a name that PEFT takes for the experts'" if others[0] in every else "is not a linear layer"
        raise UsageError(f"{where}: lora.targets: {others[0]}, which it names too, {problem}; {choice}")
    if not chosen:
        raise UsageError(f"{where}: lora.exclude: leaves no layer to adapt")
    if targets == "all-linear":
        _say_what_is_left(model, chosen, every.keys() - linears.keys(), where)
    return {name: linear for name, linear in linears.items() if name in chosen}


def _bind(layer: StackedLinear, flat: Tensor, grad: Tensor, rank: int) -> None:
    """Make the layer's A and B, and their gradients, views of the flat tensors: (n_agents, rank * (in + out))."""
    n_agents, (inputs, outputs) = flat.shape[0], _features(layer.base)
    split = rank * inputs
    for name, begin, end, shape in (
        ("a", 0, split, (n_agents, inputs, rank)),
        ("b", split, flat.shape[1], (n_agents, rank, outputs)),
    ):
        parameter = nn.Parameter(flat[:, begin:end].view(shape))
        parameter.grad = grad[:, begin:end].view(shape)
        setattr(layer, name, parameter)
