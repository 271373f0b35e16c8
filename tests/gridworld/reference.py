"""Algorithms 1, 2 and 3 on the grid, to be read: the core that the dialogue system uses, with a seed axis in front.

compiled_training.py is a compiled port, tested equal. An iteration of Algorithm 1 takes K + M - 1 steps of one chain
under the policies θ_t: the critics learn from the first K, the actors from the last M. The K-th is both, since
Algorithm 2 hands s_{K-1} on. So with K = M = 1 the critics see every step, resets included.

At every step the action is drawn from the current policy. A Q critic's target needs a successor action too: it is drawn
from the same policy with random numbers of its own, and not taken.
"""

from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from rlhf_marl.algorithm.actor import normalised_step
from rlhf_marl.algorithm.critic import Critic, Transition
from rlhf_marl.algorithm.mixing import MatrixMixer, consensus_power
from rlhf_marl.algorithm.network import Linear, Network
from rlhf_marl.algorithm.signals import SIGNALS, Values, actor_signal, critic_kind
from rlhf_marl.gridworld.draws import Draws
from rlhf_marl.gridworld.encoding import encode_actor, encode_critic
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import N_ACTIONS
from tests.gridworld.board import Spread


@dataclass(frozen=True, slots=True)
class Sample:
    """(s, a, r, s', a') of all seeds.

    Attributes:
        cells, actions, next_cells, next_actions: (S, N).
        reward: what the agents learn from, shifted and scaled, (S, N). team: the team's, as it is, (S,).
        discount: γ, or 0 where the target has no next state, (S,).
    """

    cells: np.ndarray
    actions: np.ndarray
    reward: np.ndarray
    team: np.ndarray
    next_cells: np.ndarray
    next_actions: np.ndarray
    discount: np.ndarray


@dataclass(slots=True)
class Trace:
    """Per iteration, each (S,): mean team reward, mean |Q|, share of positive signals, entropy, projected layers."""

    reward: list[np.ndarray] = field(default_factory=list)
    value: list[np.ndarray] = field(default_factory=list)
    positive: list[np.ndarray] = field(default_factory=list)
    entropy: list[np.ndarray] = field(default_factory=list)
    projected: list[np.ndarray] = field(default_factory=list)


@final
class Actors:
    """Policies of all seeds and agents: softmax over the network of Eq. (5), one b per action; all of it is trained.

    parameters: H, W and b, flat, (S, N, m (D m + d + 5)); the paper's m (D m + d + 1) with an output per action.
    """

    def __init__(self, draws: Draws, setting: Setting, dtype: torch.dtype) -> None:
        self.network = Network(setting.width, setting.depth, generator=torch.Generator())
        self._shapes = [array.shape[2:] for array in (draws.actor_h, draws.actor_w, draws.actor_b)]
        arrays = (torch.as_tensor(array, dtype=dtype) for array in (draws.actor_h, draws.actor_w, draws.actor_b))
        self.parameters = torch.cat([array.flatten(2) for array in arrays], dim=-1)

    def split(self, parameters: Tensor) -> list[Tensor]:
        """H (S, N, d, m), W (S, N, D, m, m) and b (S, N, 5, m), views."""
        parts = parameters.split([int(np.prod(shape)) for shape in self._shapes], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def logits(self, parameters: Tensor, cells: np.ndarray) -> Tensor:
        """Of every agent. cells: (S, M, N); returns (S, N, M, 5)."""
        x = np.stack([encode_actor(cells, i) for i in range(cells.shape[-1])], axis=1)
        h, w, b = self.split(parameters)
        hidden = self.network.hidden(w.flatten(2), torch.as_tensor(x).to(h) @ h)
        return hidden @ b.mT

    def log_probabilities(self, parameters: Tensor, cells: np.ndarray) -> Tensor:
        """log π^i(. | s) of every agent. cells: (S, M, N); returns (S, N, M, 5)."""
        return torch.log_softmax(self.logits(parameters, cells), dim=-1)

    def log_probability(self, parameters: Tensor, cells: np.ndarray, actions: Tensor) -> Tensor:
        """log π^i(a | s) = -log(1 + Σ_{b != a} exp(z_b - z_a)): (S, N, M) actions -> (S, N, M).

        Written like this its gradient, which has 1 - π(a) as a factor, does not vanish in rounding where the policy is
        nearly deterministic.
        """
        logits, taken = self.logits(parameters, cells), actions[..., None]
        others = logits.scatter(-1, taken, -torch.inf).logsumexp(-1)
        return -torch.nn.functional.softplus(others - logits.gather(-1, taken).squeeze(-1))

    def draw(self, cells: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """The first action whose cumulated probability exceeds the uniform number. (S, N), (S, N) -> (S, N)."""
        cumulated = self.log_probabilities(self.parameters, cells[:, None])[:, :, 0].exp().cumsum(-1)
        return (uniforms[..., None] >= cumulated[..., : N_ACTIONS - 1].numpy()).sum(-1)


@final
class Reference:
    """One setting, on the draws of all seeds."""

    def __init__(self, setting: Setting, draws: Draws, dtype: torch.dtype = torch.float64) -> None:
        s = self.setting = setting
        self.draws, self.dtype = draws, dtype
        self.actors = Actors(draws, s, dtype)
        discount = s.discount if s.reset == "restart_kernel" else None
        self.board = Spread(draws.landmarks, s.n_agents, s.split, discount)
        self.board.reset(draws.positions)
        self.iteration = 0
        self.trace = Trace()
        power = consensus_power(torch.as_tensor(draws.matrix), s.gossip_rounds)
        if s.control == "centralised":
            power = torch.ones(len(power), 1, 1)
        self.power = torch.nn.functional.pad(power, (0, 1, 0, 1)) if s.yardstick else power
        if s.yardstick:
            self.power[:, -1, -1] = 1  # Algorithm 3's critic keeps to itself
        self.critic = self._critic()

    def _critic(self) -> Critic:
        s, draws = self.setting, self.draws
        n_seeds, d, _ = draws.critic_h.shape
        network: Network | Linear
        if s.critic == "linear":
            network, initial = Linear(d), torch.zeros(n_seeds, 1, d, dtype=self.dtype)
        else:
            network = Network(s.width, s.depth, generator=torch.Generator())
            network.b = torch.as_tensor(draws.critic_b, dtype=self.dtype)[:, None, None]
            initial = torch.as_tensor(draws.critic_w, dtype=self.dtype).flatten(1)[:, None]
        return Critic(
            network,
            initial,
            self.power.shape[:2],
            MatrixMixer(self.power, 1),
            step_size=s.critic_step_size,
            radius=s.radius,
            start=s.start,
            average=s.average,
        )

    def iterate(self, uniforms: np.ndarray, redrawn: np.ndarray) -> None:
        """One iteration of Algorithm 1. uniforms: (S, K + M - 1, 2 N + 1); redrawn: (S, K + M - 1, N)."""
        s = self.setting
        samples = [self._step(uniforms[:, k], redrawn[:, k]) for k in range(s.steps_per_iteration)]
        metrics = self.critic.update([self._transition([sample]) for sample in samples[: s.critic_steps]])
        self._act(samples[s.critic_steps - 1 :])
        self.trace.reward.append(np.mean([sample.team for sample in samples], axis=0))
        self.trace.projected.append(metrics.projected.mean(-1).numpy())
        self.iteration += 1

    def _step(self, uniforms: np.ndarray, redrawn: np.ndarray) -> Sample:
        """One step of the environment. uniforms: (S, 2 N + 1) for actions, next actions, restart; redrawn: (S, N)."""
        s, n = self.setting, self.setting.n_agents
        cells = self.board.positions
        actions = self.actors.draw(cells, uniforms[:, :n])
        reached, reward, team, over = self.board.step(actions, uniforms[:, 2 * n])
        positions = self.board.reset(redrawn, where=over)
        next_cells = positions if s.bootstrap == "redrawn" else reached
        return Sample(
            cells=cells,
            actions=actions,
            reward=(reward + s.reward_shift) * s.reward_scale,
            team=team,
            next_cells=next_cells,
            next_actions=self.actors.draw(next_cells, uniforms[:, n : 2 * n]),
            discount=np.where(over & (s.bootstrap == "none"), 0.0, s.discount),
        )

    def _transition(self, samples: list[Sample]) -> Transition:
        """As the critics see it: a batch of samples, each critic with its own reward."""
        mean = np.stack([sample.reward.mean(-1, keepdims=True) for sample in samples], axis=-1)
        own = np.stack([sample.reward for sample in samples], axis=-1)  # (S, N, batch)
        if self.setting.control == "centralised":
            reward = mean
        else:
            reward = np.concatenate([own, mean], axis=1) if self.setting.yardstick else own
        return Transition(
            x0=self._features([p.cells for p in samples], [p.actions for p in samples]),
            reward=torch.as_tensor(reward, dtype=self.dtype),
            next_x0=self._features([p.next_cells for p in samples], [p.next_actions for p in samples]),
            discount=torch.as_tensor(np.stack([p.discount for p in samples], axis=-1), dtype=self.dtype)[:, None],
        )

    def _features(self, cells: list[np.ndarray], actions: list[np.ndarray]) -> Tensor:
        """H x of (s) or (s, a), or x itself for a linear critic. A batch of (S, N) -> (S, 1, batch, m or d)."""
        with_actions = critic_kind(self.setting.signal) == "q"
        x = encode_critic(np.stack(cells, axis=1), np.stack(actions, axis=1) if with_actions else None)
        features = torch.as_tensor(x, dtype=self.dtype)
        if self.setting.critic == "deep":
            features = features @ torch.as_tensor(self.draws.critic_h, dtype=self.dtype)
        return features[:, None]

    def _act(self, samples: list[Sample]) -> None:
        """Lines 6 to 17 of Algorithm 1."""
        s = self.setting
        signal = self._signal(samples)
        actions = torch.as_tensor(np.stack([sample.actions for sample in samples], axis=-1))  # (S, N, M)
        cells = np.stack([sample.cells for sample in samples], axis=1)
        log = self.actors.log_probabilities(self.actors.parameters, cells)
        parameters = self.actors.parameters.detach().requires_grad_()
        with torch.enable_grad():
            taken = self.actors.log_probability(parameters, cells, actions)
            (direction,) = torch.autograd.grad((signal * taken).mean(-1).sum(), parameters)
        step_size = s.actor_step_size / (self.iteration + 1 if s.actor_schedule == "inverse" else 1)
        self.actors.parameters = normalised_step(self.actors.parameters, direction, step_size)
        if s.actors == "gossiped":
            n = s.n_agents
            self.actors.parameters = self.power[:, :n, :n] @ self.actors.parameters
        self.trace.entropy.append(-(log.exp() * log).sum(-1).mean((1, 2)).numpy())
        self.trace.positive.append((signal > 0).double().mean((1, 2)).numpy())

    def _signal(self, samples: list[Sample]) -> Tensor:
        """What weighs the score functions: (S, N, M), or (S, 1, M) of Algorithm 3."""
        s = self.setting
        transition = self._transition(samples)
        value = self.critic.value(transition.x0)
        self.trace.value.append(value.abs().mean((1, 2)).numpy())
        agents = slice(s.n_agents)  # not the yardstick
        return actor_signal(
            s.signal,
            s.credit,
            MatrixMixer(self.power[:, agents, agents], 1),
            Values(
                value=value[:, agents],
                next_value=self.critic.value(transition.next_x0)[:, agents],
                reward=transition.reward[:, agents],
                discount=transition.discount,
                counterfactual_value=self._mean_over_own_actions(samples) if SIGNALS[s.signal].enumerates else None,
            ),
        )

    def _mean_over_own_actions(self, samples: list[Sample]) -> Tensor:
        """Σ_b π^i(b | s) Q(s, (b, a^-i)) of each agent's critic, (S, N, M)."""
        cells = [sample.cells for sample in samples]
        weights = self.actors.log_probabilities(self.actors.parameters, np.stack(cells, axis=1)).exp()
        total = torch.zeros(weights.shape[:-1], dtype=self.dtype)
        for i in range(self.setting.n_agents):
            critic = 0 if self.setting.control == "centralised" else i
            for b in range(N_ACTIONS):
                actions = [sample.actions.copy() for sample in samples]
                for row in actions:
                    row[:, i] = b
                total[:, i] += weights[:, i, :, b] * self.critic.value(self._features(cells, actions))[:, critic]
        return total
