"""The network of Eq. (5), on flat weights with any leading batch dimensions."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor


@final
class Network:
    """y = bᵀ x^(D), x^(h) = ReLU(W^(h) x^(h-1)) / √m.

    b ~ N(0, 1) is drawn once, scaled by output_scale and fixed; a policy has one b per action (n_outputs). For one b
    per seed, set `b` to (..., 1, n_outputs, m).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        generator: torch.Generator,
        n_outputs: int = 1,
        output_scale: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.width, self.depth, self.n_outputs = width, depth, n_outputs
        self.b = (output_scale * torch.randn(n_outputs, width, generator=generator)).to(device)

    @property
    def n_params(self) -> int:
        """Trainable weights: D m²."""
        return self.depth * self.width**2

    def initial_weights(self, generator: torch.Generator) -> Tensor:
        """W(0): (n_params,), independent N(0, 2) entries (variance 2)."""
        return 2**0.5 * torch.randn(self.n_params, generator=generator)

    def layers(self, weights: Tensor) -> Tensor:
        """(..., n_params) -> (..., D, m, m), a view."""
        return weights.unflatten(-1, (self.depth, self.width, self.width))

    def forward(self, weights: Tensor, x0: Tensor) -> Tensor:
        """Eq. (5) for every agent.

        weights: (..., n_agents, n_params); x0 = H x: (..., n_agents or 1, batch, m).
        Returns (..., n_agents, batch), or (..., n_agents, batch, n_outputs) if there are several outputs.
        """
        y = self.hidden(weights, x0) @ self.b.to(x0).mT
        return y.squeeze(-1) if self.n_outputs == 1 else y

    def hidden(self, weights: Tensor, x0: Tensor) -> Tensor:
        """x^(D): (..., n_agents, batch, m)."""
        x = x0
        for w in self.layers(weights).unbind(-3):
            x = torch.relu(x @ w.mT) / self.width**0.5
        return x

    def dead_fraction(self, weights: Tensor, x0: Tensor) -> Tensor:
        """Share of last-layer units that are off on the whole batch: (..., n_agents)."""
        return (self.hidden(weights, x0) == 0).all(-2).float().mean(-1)


@final
class Linear:
    """y = wᵀ x: the linear critic of the earlier theory, a drop-in for Network. Its only layer is w as (1, d)."""

    def __init__(self, n_inputs: int) -> None:
        self.n_params = n_inputs

    def layers(self, weights: Tensor) -> Tensor:
        """(..., n_params) -> (..., 1, 1, n_params), a view."""
        return weights[..., None, None, :]

    def forward(self, weights: Tensor, x0: Tensor) -> Tensor:
        """weights: (..., n_agents, n_params); x0: (..., n_agents or 1, batch, n_params) -> (..., n_agents, batch)."""
        return (x0 @ weights.unsqueeze(-1)).squeeze(-1)

    def dead_fraction(self, weights: Tensor, x0: Tensor) -> Tensor:
        """Zeros (..., n_agents): a linear critic has no units to be off."""
        return torch.zeros(weights.shape[:-1])


def value_and_gradient(
    network: Network | Linear, weights: Tensor, x0: Tensor, coefficient: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Values Q (..., n_agents, batch) and the gradient of Σ_batch c Q with respect to each agent's weights.

    `coefficient` maps the (detached) values to c, of the same shape. With c = δ this is the TD step's direction. An
    agent's values depend only on its own weights, so one backward pass over the sum serves all agents.
    """
    leaf = weights.detach().requires_grad_()
    with torch.enable_grad():
        values = network.forward(leaf, x0)
        (gradient,) = torch.autograd.grad((coefficient(values.detach()) * values).sum(), leaf)
    return values.detach(), gradient
