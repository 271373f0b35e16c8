"""Linear layers of a frozen model that are fast on a CPU, especially for few rows.

Decoding multiplies every weight by only n_agents * n_dialogues rows. MKL is faster with weights packed once into its
own layout: up to 2x at 4 and 12 rows, 1.15x at 100 rows, no gain from 768 rows on. A whole decode step takes three
quarters of the time (benchmarks/README.md). torch's compiler calls the same two operators. Where they are missing, or
on another device, layers stay plain. The cost is a second copy of the weights in memory.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOST_ROWS = 768
_PACKED_FOR = 128  # rows that the weight is packed for; used for 1 to MOST_ROWS rows


@final
class MklLinear(nn.Linear):
    """A frozen linear layer with the weight of `linear`, and a packed copy that is used for up to MOST_ROWS rows."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._operands: tuple[Tensor, Tensor, Tensor | None] | None = None  # packed weight, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        rows = x.numel() // self.in_features
        if not 0 < rows <= MOST_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._operands is None:
            packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), _PACKED_FOR)
            self._operands = packed, self.weight, self.bias
        if torch.is_grad_enabled() and x.requires_grad:
            return _PackedProduct.apply(x, *self._operands)
        return _product(x, *self._operands)


def _product(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The last argument is the number of rows that the weight was packed for. If it differs from x's, the operator falls
    # back to the plain weight; the layout does not depend on it.
    return torch.ops.mkl._mkl_linear.default(x, packed, weight, bias, x.numel() // x.shape[-1])


class _PackedProduct(torch.autograd.Function):
    """x W^T + bias with the packed W. Only x gets a gradient: W and the bias are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, packed, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return torch.matmul(gradients[0], ctx.weight), None, None, None


def use_mkl_linears(model: nn.Module) -> None:
    """Replace the linear layers of a frozen float32 model on the CPU, in place. Other models stay unchanged."""
    operators = ("_mkl_reorder_linear_weight", "_mkl_linear")
    if not (torch.backends.mkl.is_available() and all(hasattr(torch.ops.mkl, name) for name in operators)):
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
                setattr(parent, name, MklLinear(child))
