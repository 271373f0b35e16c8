"""Linear layers that are fast for a few rows: decoding multiplies every weight by only n_agents * n_dialogues rows.

On a CPU, MKL multiplies by a weight that was reordered once into its own layout 1.1 to 2 times as fast, at 12 and at 4
rows, as by a plain matrix (benchmarks/README.md). torch's own compiler calls the same two operators; where they are
missing, or on another device, layers stay plain. The price is a second copy of the weights in memory.
"""

from typing import final

import torch
from torch import Tensor, nn

# From here on the plain product is as fast, and prompts and training take it.
MOST_ROWS = 64


@final
class PackedLinear(nn.Linear):
    """A frozen linear layer with the weight of `linear`; in inference mode few rows take the packed copy of it."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        rows = x.numel() // self.in_features
        if not torch.is_inference_mode_enabled() or not 0 < rows <= MOST_ROWS:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), MOST_ROWS)
        return torch.ops.mkl._mkl_linear.default(x, self._packed, self.weight, self.bias, rows)


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of a frozen float32 model on the CPU, in place; leave other models as they are."""
    if not _available():
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
                setattr(parent, name, PackedLinear(child))


def _available() -> bool:
    operators = ("_mkl_reorder_linear_weight", "_mkl_linear")
    return torch.backends.mkl.is_available() and all(hasattr(torch.ops.mkl, name) for name in operators)
