"""Linear layers that are fast for a few rows: decoding multiplies every weight by only n_agents * n_dialogues rows.

On a CPU, oneDNN multiplies by a weight that was reordered once into its own layout 1.3 to 1.7 times faster at 12 and
4 rows than by a plain matrix (benchmarks/README.md). torch's own compiler calls the same two operators; where they are
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
        if not torch.is_inference_mode_enabled() or x.numel() > MOST_ROWS * self.in_features:
            return nn.functional.linear(x, self.weight, self.bias)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Replace the linear layers of a frozen float32 model on the CPU, in place; leave other models as they are."""
    if not _available():
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
                setattr(parent, name, PackedLinear(child))


def _available() -> bool:
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)
