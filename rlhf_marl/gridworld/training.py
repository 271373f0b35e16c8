"""The front door of the grid: run a setting on many seeds, log as it goes.

    setting -> draw_world -> [ kernel.run on an interval -> statistics, snapshot ]* -> History
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rlhf_marl.algorithm import consensus_power
from rlhf_marl.gridworld import kernel
from rlhf_marl.gridworld.encoding import SCALED, encode_actor, encode_critic
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import DISTANCE, N_ACTIONS, N_CELLS, NEXT_CELL
from rlhf_marl.gridworld.world import Noise, World, draw_world

_SIGNALS = ("td_q_literal", "td_q", "td_v", "q_value", "counterfactual")
_BOOTSTRAPS = ("reached", "redrawn", "none")
_LANES = 8  # the width that the kernel's inner loops are padded to
_CHUNK = 2000  # steps whose noise is drawn at once


@dataclass(frozen=True, slots=True)
class Policies:
    """Actor weights of all seeds, as in World."""

    h: np.ndarray
    w: np.ndarray
    b: np.ndarray


@dataclass(frozen=True, slots=True)
class Critics:
    """Critic weights of all seeds after gossip, and before the last one. w: (S, C, D, m, m); linear: (S, C, d)."""

    w: np.ndarray
    linear: np.ndarray
    before_w: np.ndarray
    before_linear: np.ndarray


@dataclass(frozen=True, slots=True)
class History:
    """What a setting did, at P points; arrays (S seeds, P) unless they say otherwise.

    Attributes:
        points: iterations done at each point, (P,).
        reward: mean team reward per step since the point before.
        value: mean |Q| (or |V|). positive: share of positive actor signals. entropy: of the policies, nats.
        projected: share of layers projected onto the ball. skipped: steps left out because they were not finite.
        dead: share of the critics' last hidden units that are off on a sample of states.
        disagreement_before, disagreement_after: of the agents' critics around the last gossip (0 for Algorithm 3).
        distance: between the mean decentralised critic and Algorithm 3 on the same samples; NaN without a yardstick.
        policies: snapshots at the points. critics: at the end.
    """

    points: np.ndarray
    reward: np.ndarray
    value: np.ndarray
    positive: np.ndarray
    entropy: np.ndarray
    projected: np.ndarray
    skipped: np.ndarray
    dead: np.ndarray
    disagreement_before: np.ndarray
    disagreement_after: np.ndarray
    distance: np.ndarray
    policies: list[Policies]
    critics: Critics


def train(
    setting: Setting,
    master: int,
    seeds: range,
    points: Sequence[int],
    *,
    dtype: type = np.float32,
    world: World | None = None,
    progress: Callable[[int], None] = lambda iterations: None,
) -> History:
    """Run a setting on seeds; common master and seeds make settings comparable pairwise.

    Args:
        points: increasing numbers of iterations at which to log; the last one ends the run.
        world: what the seeds decide, if it is drawn already.
        progress: called with the iterations just done.
    """
    world = world or draw_world(setting, master, seeds)
    noise = [Noise(master, seed, setting.n_agents) for seed in seeds]
    state = _State(setting, world, dtype)
    rows: list[dict[str, np.ndarray]] = []
    snapshots = []
    done = 0
    for point in points:
        statistics = np.zeros((len(seeds), kernel.N_STATISTICS))
        began = done
        while done < point:
            chunk = min(point - done, max(1, _CHUNK // setting.steps_per_iteration))
            taken = [n.take(chunk * setting.steps_per_iteration) for n in noise]
            uniforms, redrawn = (np.stack(part) for part in zip(*taken, strict=True))
            state.run(done, chunk, uniforms, redrawn, statistics)
            done += chunk
            progress(chunk)
        rows.append(_row(setting, state, statistics, point - began))
        snapshots.append(state.policies())
    return History(
        points=np.asarray(points),
        policies=snapshots,
        critics=state.critics(),
        **{name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]},
    )


class _State:
    """Padded arrays that the kernel works on in place."""

    def __init__(self, s: Setting, world: World, dtype: type) -> None:
        n_seeds = len(world.landmarks)
        self.setting, self.dtype = s, dtype
        self._pool = ThreadPoolExecutor(os.cpu_count())
        self.n_critics = 1 if s.control == "centralised" else s.n_agents + s.yardstick
        self.decentralised = 0 if s.control == "centralised" else s.n_agents
        self.width = -(-s.width // _LANES) * _LANES
        self.critic_h = self._padded(world.critic_h, (-1,))
        self.critic_0 = self._padded(world.critic_w, (-2, -1))
        self.critic_b = self._padded(world.critic_b, (-1,))
        self.actor_h = self._padded(world.actor_h, (-1,))
        self.actor_w = self._padded(np.swapaxes(world.actor_w, -1, -2), (-2, -1))
        self.actor_b = self._padded(world.actor_b, (-1,))
        self.critic_0 = np.ascontiguousarray(np.swapaxes(self.critic_0, -1, -2))
        self.critic_w = np.repeat(self.critic_0[:, None], self.n_critics, axis=1)
        d = world.critic_h.shape[1]
        self.linear = np.zeros((n_seeds, self.n_critics, d), dtype)
        self.before_w, self.before_linear = self.critic_w.copy(), self.linear.copy()
        self.bounds = np.zeros((n_seeds, self.n_critics, s.depth), dtype)
        self.positions, self.ages = world.positions.copy(), np.zeros((n_seeds, 1), dtype=np.int64)
        self.landmarks = world.landmarks
        self.power = np.stack([self._power(matrix) for matrix in world.matrix]).astype(dtype)
        self.readers = np.zeros(s.n_agents, int) if s.control == "centralised" else np.arange(s.n_agents)
        radius = np.inf if s.radius is None else s.radius
        self.numbers = np.array([s.discount, s.actor_step_size, s.critic_step_size, radius, s.width**-0.5], dtype)

    def _padded(self, array: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        pad = [(0, 0)] * array.ndim
        for axis in axes:
            pad[axis] = (0, self.width - array.shape[axis])
        return np.ascontiguousarray(np.pad(array, pad), dtype=self.dtype)

    def _power(self, matrix: np.ndarray) -> np.ndarray:
        """A^t_gossip among the agents' critics; Algorithm 3's critic keeps to itself."""
        import torch

        power = np.eye(self.n_critics)
        n = self.decentralised
        power[:n, :n] = consensus_power(torch.as_tensor(matrix), self.setting.gossip_rounds).numpy()[:n, :n]
        return power

    def run(
        self, done: int, iterations: int, uniforms: np.ndarray, redrawn: np.ndarray, statistics: np.ndarray
    ) -> None:
        s = self.setting
        options = (
            done, iterations, s.critic_steps, s.actor_samples, self.numbers, s.actor_schedule == "inverse",
            s.start == "restart", s.average, s.critic == "linear", s.control == "centralised",
            _SIGNALS.index(s.signal), s.credit == "local", s.split == "closest", s.reward_shift, s.reward_scale,
            s.reset == "restart_kernel", _BOOTSTRAPS.index(s.bootstrap),
            SCALED.astype(self.dtype), DISTANCE, NEXT_CELL, self.readers,
        )  # fmt: skip
        per_seed = zip(
            self.landmarks, self.power, self.critic_h, self.critic_0, self.critic_b, self.actor_h, self.actor_w,
            self.actor_b, self.critic_w, self.linear, self.before_w, self.before_linear, self.bounds, self.positions,
            self.ages, uniforms, redrawn, statistics, strict=True,
        )  # fmt: skip
        for _ in self._pool.map(lambda arrays: kernel.run(*options, *arrays), per_seed):  # the kernel holds no GIL
            pass

    def policies(self) -> Policies:
        m = self.setting.width
        return Policies(
            self.actor_h[..., :m].copy(),
            np.swapaxes(self.actor_w[..., :m, :m], -1, -2).copy(),
            self.actor_b[..., :m].copy(),
        )

    def critics(self) -> Critics:
        m = self.setting.width
        w, before = (np.swapaxes(a[..., :m, :m], -1, -2).copy() for a in (self.critic_w, self.before_w))
        return Critics(w, self.linear.copy(), before, self.before_linear.copy())


def _row(s: Setting, state: _State, statistics: np.ndarray, iterations: int) -> dict[str, np.ndarray]:
    """The log's entries at a point, each (S,)."""
    steps = iterations * s.steps_per_iteration
    flat = _flat(s, state.critic_w, state.linear)
    n = state.decentralised
    after, before = flat[:, :n], _flat(s, state.before_w, state.before_linear)[:, :n]
    distance = np.full(len(flat), np.nan)
    if s.yardstick:
        distance = np.linalg.norm(flat[:, :n].mean(1) - flat[:, n], axis=-1)
    return {
        "reward": statistics[:, kernel.REWARD] / steps,
        "value": statistics[:, kernel.VALUE] / iterations,
        "positive": statistics[:, kernel.POSITIVE] / iterations,
        "entropy": statistics[:, kernel.ENTROPY] / (iterations * s.actor_samples * s.n_agents),
        "projected": statistics[:, kernel.PROJECTED] / iterations,
        "skipped": statistics[:, kernel.SKIPPED],
        "dead": _dead(s, state),
        "disagreement_before": _disagreement(before),
        "disagreement_after": _disagreement(after),
        "distance": distance,
    }


def _flat(s: Setting, w: np.ndarray, linear: np.ndarray) -> np.ndarray:
    chosen = linear if s.critic == "linear" else w
    return chosen.reshape(*chosen.shape[:2], -1)


def _disagreement(weights: np.ndarray) -> np.ndarray:
    """As algorithm.gossip.disagreement: (S, N, n_params) -> (S,)."""
    if weights.shape[1] == 0:
        return np.zeros(len(weights))
    distance = weights - weights.mean(1, keepdims=True)
    return np.sqrt((distance**2).sum(-1).mean(-1))


def _dead(s: Setting, state: _State) -> np.ndarray:
    """Share of each critic's last hidden units that are off on 64 random states (and actions), mean over critics."""
    if s.critic == "linear":
        return np.zeros(len(state.positions))
    generator = np.random.default_rng(0)
    positions = generator.integers(N_CELLS, size=(64, s.n_agents))
    actions = generator.integers(N_ACTIONS, size=(64, s.n_agents)) if s.signal != "td_v" else None
    x0 = encode_critic(positions, actions).astype(state.dtype) @ state.critic_h  # (S, 64, m)
    hidden = _hidden(np.swapaxes(state.critic_w, -1, -2), x0[:, None], s.width)
    return (hidden[..., : s.width] <= 0).all(-2).mean((-2, -1))


def _hidden(w: np.ndarray, x0: np.ndarray, width: int) -> np.ndarray:
    """x^(D) of Eq. (5): w (..., D, m, m), outputs first; x0 (..., batch, m)."""
    x = x0
    for layer in range(w.shape[-3]):
        x = np.maximum(x @ np.swapaxes(w[..., layer, :, :], -1, -2), 0) / np.asarray(width**0.5, x.dtype)
    return x


def policy_table(policies: Policies, n_agents: int = 2) -> np.ndarray:
    """Action probabilities of two agents everywhere: (S, 2, 65, 65, 5), indexed by agent, own cell, other's cell."""
    own, other = np.divmod(np.arange(N_CELLS**2), N_CELLS)
    x = encode_actor(np.stack([own, other], axis=-1), 0).astype(policies.h.dtype)
    return _softmax(_logits(policies, x)).reshape(-1, n_agents, N_CELLS, N_CELLS, N_ACTIONS)


def _logits(policies: Policies, x: np.ndarray) -> np.ndarray:
    """x: (batch, d) as the agent sees it; returns (S, N, batch, 5)."""
    width = policies.h.shape[-1]
    return _hidden(policies.w, x @ policies.h, width) @ np.swapaxes(policies.b, -1, -2)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)
