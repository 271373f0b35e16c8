"""Random draws of a seed: landmarks, consensus matrix, initial weights, and all noise of a run.

They depend only on (master seed, seed), so settings of equal shape share their initial weights and noise.
"""

from dataclasses import dataclass, fields
from typing import final

import numpy as np
import torch

from rlhf_marl.algorithm.signals import critic_kind
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix
from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.encoding import actor_inputs, critic_inputs
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import N_ACTIONS, N_CELLS, random_landmarks

_LANDMARKS, _TOPOLOGY, _CRITIC, _ACTOR, _ACTIONS, _POSITIONS = range(6)


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of S seeds. Networks as in Eq. (5), with H as (d, m) and W^(h) as (m, m), outputs first.

    Attributes:
        landmarks: (S, N) cells.
        matrix: consensus matrix, (S, N, N).
        critic_h, critic_w, critic_b: (S, d, m), (S, D, m, m), (S, m); the same for all agents.
        actor_h, actor_w, actor_b: (S, N, d', m), (S, N, D, m, m), (S, N, 5, m).
        positions: (S, N) initial cells.
    """

    landmarks: np.ndarray
    matrix: np.ndarray
    critic_h: np.ndarray
    critic_w: np.ndarray
    critic_b: np.ndarray
    actor_h: np.ndarray
    actor_w: np.ndarray
    actor_b: np.ndarray
    positions: np.ndarray


@final
class Noise:
    """One seed's random numbers in the order of environment steps, independent of the chunk size."""

    def __init__(self, master: int, seed: int, n_agents: int) -> None:
        self._n_agents = n_agents
        self._actions = np.random.default_rng([master, seed, _ACTIONS])
        self._positions = np.random.default_rng([master, seed, _POSITIONS])
        self.first_positions = self._positions.integers(N_CELLS, size=n_agents)

    def take(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Uniforms (steps, 2 N + 1): for the actions, for the next actions, for the restart; new cells (steps, N)."""
        return (
            self._actions.random((steps, 2 * self._n_agents + 1)),
            self._positions.integers(N_CELLS, size=(steps, self._n_agents)),
        )


def draw_all(setting: Setting, master: int, seeds: range) -> Draws:
    """Draw landmarks, matrices and weights of all seeds; raises UsageError if Assumption 5.1 is violated."""
    drawn = [_draw(setting, master, seed) for seed in seeds]
    return Draws(**{f.name: np.stack([getattr(w, f.name) for w in drawn]) for f in fields(Draws)})


def _draw(s: Setting, master: int, seed: int) -> Draws:
    def generator(*stream: int) -> np.random.Generator:
        return np.random.default_rng([master, seed, *stream])

    def normal(source: np.random.Generator, *shape: int, variance: float = 2.0) -> np.ndarray:
        return variance**0.5 * source.standard_normal(shape)

    critic, m = generator(_CRITIC), s.width
    d = critic_inputs(s.n_agents, with_actions=critic_kind(s.signal) == "q")
    actors = [generator(_ACTOR, i if s.actors == "own" else 0) for i in range(s.n_agents)]
    return Draws(
        landmarks=random_landmarks(s.n_agents, generator(_LANDMARKS)),
        matrix=draw_matrix(s, master, seed),
        critic_h=normal(critic, d, m),
        critic_w=normal(critic, s.depth, m, m),
        critic_b=s.critic_output_scale * normal(critic, m, variance=1.0),
        actor_h=np.stack([normal(g, actor_inputs(s.n_agents), m) for g in actors]),
        actor_w=np.stack([normal(g, s.depth, m, m) for g in actors]),
        actor_b=np.stack([s.actor_output_scale * normal(g, N_ACTIONS, m, variance=1.0) for g in actors]),
        positions=Noise(master, seed, s.n_agents).first_positions,
    )


def draw_matrix(s: Setting, master: int, seed: int) -> np.ndarray:
    """A seed's consensus matrix, (N, N); raises UsageError for a graph or matrix that violates Assumption 5.1."""
    number = int(np.random.default_rng([master, seed, _TOPOLOGY]).integers(2**62))
    torch_generator = torch.Generator().manual_seed(number)
    try:
        graph = adjacency(
            s.graph, s.n_agents, edges=s.edges, edge_probability=s.edge_probability, generator=torch_generator
        )
        return consensus_matrix(
            s.matrix, graph, laziness=s.laziness, given=s.weights, generator=torch_generator
        ).numpy()
    except ValueError as error:
        raise UsageError(f"topology: {error}") from None
