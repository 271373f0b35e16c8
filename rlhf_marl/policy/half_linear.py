"""Linear layers of a frozen model on a CPU, with weights of half precision.

Decoding multiplies every weight by only n_agents * n_dialogues rows, so most of its time goes into reading weights.
FBGEMM reads a packed copy in half precision, and converts, multiplies and adds in float32: three times as fast as plain
float32 products at 12 rows. So that this is the same model, the float32 weights, which products of more rows and
backward passes use, are rounded to half precision first. Where FBGEMM is missing, layers stay plain.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOST_ROWS = 48  # up to here the packed product is the faster one, with AVX2 and with AVX-512
_LARGEST = torch.finfo(torch.half).max


@final
class HalfLinear(nn.Linear):
    """A frozen linear layer whose weight, of half precision, has a packed copy for up to MOST_ROWS rows."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: Any = None  # made by the first product that needs it
        self._packed_with_next: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        if not 0 < x.numel() // self.in_features <= MOST_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.quantized.linear_prepack_fp16(self.weight.detach(), self.bias)
        if torch.is_grad_enabled() and x.requires_grad:
            return _PackedProduct.apply(x, self._packed, self.weight)
        return _product(x, self._packed)


def multiply_together(layers: Sequence[HalfLinear], x: Tensor) -> Tensor:
    """The outputs side by side, (rows, sum of widths), of layers that read the same x (rows, in), as one product.

    rows: up to MOST_ROWS. A group of several has a packed copy of its own, kept by its first layer, which no other
    group may begin with.
    """
    first = layers[0]
    if len(layers) == 1:
        return first(x)
    if first._packed_with_next is None:
        weight: Tensor = torch.cat([layer.weight.detach() for layer in layers])
        bias = None
        if any(layer.bias is not None for layer in layers):
            bias = torch.cat([_bias(layer) for layer in layers])
        first._packed_with_next = torch.ops.quantized.linear_prepack_fp16(weight, bias)
    return _product(x, first._packed_with_next)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()


def _product(x: Tensor, packed: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16.default(x, packed)


class _PackedProduct(torch.autograd.Function):
    """x W^T + bias with the packed W. Only x gets a gradient: W and the bias are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Any, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return _product(x, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.matmul(gradients[0], ctx.weight), None, None


def can_pack() -> bool:
    """Whether torch was built with FBGEMM, as it is for x86 processors."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def use_half_precision(model: nn.Module) -> None:
    """Round the weights of a frozen float32 model's linear layers to half precision, and pack them, in place.

    Layers that hold larger numbers than half precision has, and models elsewhere than on the CPU, stay as they are.
    """
    packs = can_pack()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.device.type != "cpu":
                continue
            if child.weight.dtype != torch.float32 or child.weight.abs().max() > _LARGEST:
                continue
            child.weight.data.copy_(child.weight.half())
            if packs:
                setattr(parent, name, HalfLinear(child))
