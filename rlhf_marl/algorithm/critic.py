"""Algorithm 2: decentralised TD learning of one critic per agent, then gossip.

With Adam the agents gossip its second moment along with the weights. Otherwise each agent would divide its gradient by
its own scale before the average, and the consensus would not be the critic of the mean reward (Chen, Karimi, Zhao and
Li 2021, "On the Convergence of Decentralized Adaptive Gradient Methods").
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import Mixer, disagreement, team_mean
from rlhf_marl.algorithm.network import Linear, Network, value_and_gradient
from rlhf_marl.algorithm.optimizers import BETA_2, AgentAdam
from rlhf_marl.algorithm.signals import td_error


@dataclass(frozen=True, slots=True)
class Transition:
    """A batch of samples (s, a, r, s', a') as the critics see them.

    Attributes:
        x0, next_x0: projected features H x of (s) or (s, a) and of the successor, (..., n_agents or 1, batch, m).
        reward: r^i, (..., n_agents, batch).
        discount: γ, or 0 at terminal states, (..., n_agents or 1, batch or 1).
    """

    x0: Tensor
    reward: Tensor
    next_x0: Tensor
    discount: Tensor


@dataclass(frozen=True, slots=True)
class CriticMetrics:
    """Metrics of one call of Algorithm 2: each (..., n_agents); the disagreements (...).

    Attributes:
        td_error: mean |δ| of the last TD step.
        value, magnitude: mean critic value, and mean of its absolute value, at the last TD step.
        gradient_norm: of the last TD step.
        projected: share of layers that left the ball and were projected, over all steps.
        skipped: TD steps skipped because the gradient or the resulting weights were not finite.
        disagreement_before, disagreement_after: of the weights, around line 12's gossip.
    """

    td_error: Tensor
    value: Tensor
    magnitude: Tensor
    gradient_norm: Tensor
    projected: Tensor
    skipped: Tensor
    disagreement_before: Tensor
    disagreement_after: Tensor


@final
class Critic:
    """The critics of all agents: weights (*batch_shape, n_params), batch_shape = (..., n_agents)."""

    def __init__(
        self,
        network: Network | Linear,
        initial: Tensor,
        batch_shape: Sequence[int],
        mixer: Mixer,
        *,
        step_size: float,
        radius: float | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        start: Literal["warm", "restart"] = "warm",
        average: bool = True,
        initial_value: Literal["network", "zero"] = "network",
        mean: Callable[[Tensor], Tensor] = team_mean,
    ) -> None:
        """
        Args:
            initial: W(0), (n_params,), shared by all agents and the centre of the ball; (..., 1, n_params) for one per
                seed.
            mixer: gossip of the weights, and of Adam's second moment.
            step_size: β. radius: B, or None for no projection.
            start: `restart` begins every call at W(0), as in the paper, and without momentum; `warm` begins at the last
                gossiped weights.
            average: line 9's running average; without it, the result is the last iterate.
            initial_value: `network` takes the network's value, as in the paper. `zero` subtracts the network with W(0),
                so that the value starts at 0 everywhere; the gradient is the same.
            mean: (..., n_agents, n) -> (..., 1, n), the mean over the whole team, for the disagreement; by default
                all of the team's agents are here.
        """
        self.network = network
        self.initial = initial
        self.weights = initial.expand(*batch_shape, -1).clone()
        self._mixer, self._mean = mixer, mean
        self.radius, self.start, self.average, self.step_size = radius, start, average, step_size
        self._from_zero = initial_value == "zero"
        self._iterate = self.weights.clone()
        self._adam = AgentAdam(self._iterate, step_size) if optimizer == "adam" else None

    def value(self, x0: Tensor) -> Tensor:
        """Q or V of every agent: (..., n_agents, batch)."""
        with torch.no_grad():
            return self.network.forward(self.weights, x0) - self._offset(x0)

    def _offset(self, x0: Tensor) -> Tensor:
        """The initial network's value, which `initial_value: zero` subtracts: (..., n_agents, batch); or a 0.

        Computed for every agent, although it is the same: products of another shape are rounded in another way on a
        GPU, and the difference would be a signal before anybody was rewarded, on which scaled Adam makes full steps.
        """
        if not self._from_zero:
            return torch.zeros((), device=x0.device)
        return self.network.forward(self.initial.expand_as(self.weights).contiguous(), x0)

    def update(self, transitions: Sequence[Transition]) -> CriticMetrics:
        """Algorithm 2 with K = len(transitions): one TD step on each, then gossip. Without transitions, nothing."""
        if not transitions:
            nothing = torch.zeros(self.weights.shape[:-1])
            apart = nothing.sum(-1)
            return CriticMetrics(nothing, nothing, nothing, nothing, nothing, nothing, apart, apart)
        if self.start == "restart":
            self.weights = self.initial.expand_as(self.weights).clone()
            if self._adam is not None:
                self._adam.forget_momentum()
        self._iterate.copy_(self.weights)
        average = self.weights
        skipped = torch.zeros(self.weights.shape[:-1], device=self.weights.device)
        projected = torch.zeros_like(skipped)
        for k, transition in enumerate(transitions):
            delta, value, gradient = self._td_gradient(transition)
            usable = gradient.norm(dim=-1).isfinite()  # a huge gradient would leave inf in Adam's second moment
            usable = self._step(gradient, usable)
            inside, outside = project_to_ball(self._iterate, self.initial, self.radius, self.network)
            self._iterate.copy_(inside)
            average = (k + 1) / (k + 2) * average + 1 / (k + 2) * self._iterate  # line 9
            skipped += ~usable
            projected += outside / len(transitions)
        before = average if self.average else self._iterate.clone()
        self.weights = self._gossip(before)
        mean = self._mean(self.weights)  # gossip keeps it; an agent's weights before gossip would reveal its rewards
        return CriticMetrics(
            td_error=delta.abs().mean(-1),
            value=value.mean(-1),
            magnitude=value.abs().mean(-1),
            gradient_norm=gradient.norm(dim=-1),
            projected=projected,
            skipped=skipped,
            disagreement_before=disagreement(before, mean),
            disagreement_after=disagreement(self.weights, mean),
        )

    @property
    def gossiped(self) -> int:
        """How many numbers an agent sends to each neighbour per round."""
        return self.network.n_params * (1 if self._adam is None else 2)

    def _gossip(self, weights: Tensor) -> Tensor:
        """Line 12, with Adam's second moment in the same message."""
        if self._adam is None:
            return self._mixer.mix(weights)
        second_moment = self._adam.second_moment.view_as(weights)
        mixed, second_moment = self._mixer.mix(torch.cat([weights, second_moment], dim=-1)).chunk(2, dim=-1)
        self._adam.second_moment = second_moment.flatten(0, -2)
        return mixed.contiguous()

    def _td_gradient(self, t: Transition) -> tuple[Tensor, Tensor, Tensor]:
        """Lines 6 and 7: δ, Q and the mean over the batch of δ ∇Q (semi-gradient: the target is a constant)."""
        with torch.no_grad():
            next_value = self.network.forward(self._iterate, t.next_x0) - self._offset(t.next_x0)
            offset = self._offset(t.x0)
        delta = torch.empty(0)

        def coefficient(value: Tensor) -> Tensor:
            nonlocal delta
            delta = td_error(value - offset, t.reward, next_value, t.discount)
            return delta / delta.shape[-1]

        value, gradient = value_and_gradient(self.network, self._iterate, t.x0, coefficient)
        return delta, value - offset, gradient

    def _step(self, gradient: Tensor, usable: Tensor) -> Tensor:
        """W̃ = W - β δ∇Q, or an Adam step instead. Returns which agents moved, (..., n_agents).

        An agent keeps its iterate if its gradient or its new weights are not finite.
        """
        kept = self._iterate.clone()
        if self._adam is None:
            self._iterate -= self.step_size * gradient.masked_fill(~usable.unsqueeze(-1), 0.0)
        else:
            self._adam.step(gradient, usable)
        usable = usable & self._iterate.isfinite().all(-1)
        self._iterate.copy_(torch.where(usable.unsqueeze(-1), self._iterate, kept))
        return usable

    def state_dict(self, agent: int) -> dict[str, Tensor]:
        """All state of one agent (of one seed) that `update` changes, as tensors."""
        moments = self._adam.state_dict(agent) if self._adam is not None else {}
        weights = self.weights.flatten(0, -2)[agent]
        return {"weights": weights, **{f"adam.{name}": value for name, value in moments.items()}}

    def load_state_dict(self, agent: int, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.weights.flatten(0, -2)[agent].copy_(state["weights"])
        if self._adam is not None:
            moments = {name.removeprefix("adam."): value for name, value in state.items() if name != "weights"}
            self._adam.load_state_dict(agent, moments)


def gossip_scale(
    network: Network, output_scale: float, *, step_size: float, optimizer: Literal["sgd", "adam"], steps: int
) -> tuple[Tensor, Tensor]:
    """Norm of the change that K steps make in what an agent gossips, for TD errors of variance 1.

    Masks must be as large in every number as the whole change: a few TD errors are behind it, and a neighbour could
    average smaller masks over the many numbers. With features of ‖x‖² = 2m, ‖∇Q‖² is about D m output_scale².
    Adam's steps are taken for as long as the step size; the first reward after many updates without any makes a longer
    one, up to 16 times as long where `restart` clears the momentum.

    Returns:
        (gossiped,) each: this length, and which numbers are never negative, Adam's second moments.
    """
    n_params, gradient = network.n_params, output_scale * (network.depth * network.width) ** 0.5
    if optimizer == "sgd":
        return torch.full((n_params,), steps * step_size * gradient), torch.zeros(n_params, dtype=torch.bool)
    squares = steps * (1 - BETA_2) * gradient**2 / n_params**0.5
    lengths = torch.tensor([steps * step_size * n_params**0.5, squares], dtype=torch.float64)
    return lengths.repeat_interleave(n_params), torch.tensor([False, True]).repeat_interleave(n_params)


def project_to_ball(
    weights: Tensor, centre: Tensor, radius: float | None, network: Network | Linear
) -> tuple[Tensor, Tensor]:
    """Line 8: per layer, the nearest weights with ‖W^(h) - W^(h)(0)‖_F <= B.

    Returns the projected weights (..., n_params) and the share of layers that were outside, (...).
    """
    if radius is None:
        return weights, torch.zeros(weights.shape[:-1], device=weights.device)
    offset = network.layers(weights - centre)
    norm = offset.flatten(-2).norm(dim=-1)  # (..., D)
    outside = norm > radius
    scale = torch.where(outside, radius / norm, 1.0)
    inside = centre + (offset * scale[..., None, None]).flatten(-3)
    return torch.where(outside.any(-1, keepdim=True), inside, weights), outside.float().mean(-1)
