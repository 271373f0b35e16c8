"""Entry point of the grid world: train a setting on many seeds and log its progress.

setting -> draw_all -> [ compiled_training.run on an interval -> statistics, snapshot ]* -> History
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_marl.algorithm.mixing import consensus_power, own_share
from rlhf_marl.algorithm.signals import critic_kind
from rlhf_marl.gridworld import compiled_layout, compiled_training
from rlhf_marl.gridworld.chain import chain
from rlhf_marl.gridworld.compiled_step import fill_table
from rlhf_marl.gridworld.draws import Draws, Noise, draw_all
from rlhf_marl.gridworld.encoding import SCALED, encode_actor, encode_critic
from rlhf_marl.gridworld.exact import expected_next, reward_table
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import DISTANCE, N_ACTIONS, N_CELLS, NEXT_CELL

_BOOTSTRAPS = ("reached", "redrawn", "none")
_LANES = 8  # the kernel's inner loops are padded to a multiple of this
_CHUNK = 2000  # steps whose noise is drawn at once
_REFRESH = 10  # iterations between two exact values; policies change little in so few
_CLOSE = 1e-4  # of an exact critic's values, in units of the learning reward


def _pool(workers: int | None = None) -> ThreadPoolExecutor:
    """One thread per core. Subnormal float32 numbers are flushed to 0: they would slow deep networks twentyfold."""
    return ThreadPoolExecutor(workers or os.cpu_count(), initializer=torch.set_flush_denormal, initargs=(True,))


@dataclass(frozen=True, slots=True)
class Policies:
    """Actor weights of all seeds; shapes as in Draws."""

    h: np.ndarray
    w: np.ndarray
    b: np.ndarray


@dataclass(frozen=True, slots=True)
class Critics:
    """Critic weights of all seeds, after and before the last gossip: (S, C, D, m, m), or (S, C, 1, 1, d) if linear.

    The C critics are the agents' followed by the yardstick's, or only Algorithm 3's.
    """

    w: np.ndarray
    before: np.ndarray


@dataclass(frozen=True, slots=True)
class History:
    """Log of a training run at P points; arrays are (S seeds, P) unless noted.

    Attributes:
        points: iterations completed at each point, (P,).
        reward: mean team reward per step since the previous point.
        value: mean |Q| (or |V|). positive: share of positive actor signals. entropy: of the policies, in nats.
        projected: share of layers projected onto the ball. skipped: steps skipped because they were not finite.
        dead: share of the critics' last hidden units that are zero on a sample of states. dead_actors: share of
            actors whose last hidden units are all zero on all of them: uniform policies with zero gradient in b.
        disagreement_before, disagreement_after: of the agents' critics, around the last gossip (0 for Algorithm 3).
        distance: between the mean decentralised critic and Algorithm 3 on the same samples; NaN without a yardstick.
        policies: snapshots at the points. critics: at the end of the run.
    """

    points: np.ndarray
    reward: np.ndarray
    value: np.ndarray
    positive: np.ndarray
    entropy: np.ndarray
    projected: np.ndarray
    skipped: np.ndarray
    dead: np.ndarray
    dead_actors: np.ndarray
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
    dtype: type[np.floating] = np.float32,
    draws: Draws | None = None,
    progress: Callable[[int], None] = lambda iterations: None,
) -> History:
    """Train a setting on the given seeds. Settings with equal master and seeds can be compared seed by seed.

    Args:
        points: increasing numbers of iterations at which to log; the last one ends the run.
        draws: result of `draw_all`, if already computed.
        progress: called with the number of iterations just completed.
    """
    draws = draws or draw_all(setting, master, seeds)
    noise = [Noise(master, seed, setting.n_agents) for seed in seeds]
    state = _State(setting, draws, dtype)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows: list[dict[str, np.ndarray]] = []
    snapshots = []
    done = 0
    with _pool(workers) as pool:
        for point in points:
            statistics = np.zeros((len(seeds), compiled_layout.N_STATISTICS))
            began = done
            while done < point:
                chunk = min(point - done, max(1, _CHUNK // setting.steps_per_iteration))
                if setting.critic == "exact":
                    chunk = min(chunk, _REFRESH)
                    state.refresh()
                taken = [n.take(chunk * setting.steps_per_iteration) for n in noise]
                uniforms, redrawn = (np.stack(part) for part in zip(*taken, strict=True))
                state.run(pool, done, chunk, uniforms, redrawn, statistics)
                done += chunk
                progress(chunk)
            rows.append(_row(setting, state, statistics, point - began))
            snapshots.append(state.policies())
    return History(
        points=np.asarray(points),
        policies=snapshots,
        critics=Critics(state.weights(0), state.weights(1)),
        **{name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]},
    )


class _State:
    """Padded arrays that the kernel updates in place."""

    def __init__(self, s: Setting, draws: Draws, dtype: type[np.floating]) -> None:
        n_seeds = len(draws.landmarks)
        self.setting, self.dtype = s, dtype
        self.n_critics = 1 if s.control == "centralised" else s.n_agents + s.yardstick
        self.decentralised = 0 if s.control == "centralised" else s.n_agents
        d = draws.critic_h.shape[1]
        if s.critic == "linear":
            critic_h = np.repeat(np.eye(d, dtype=dtype)[None], n_seeds, axis=0)
            critic_0, critic_b = np.zeros((n_seeds, 1, 1, d), dtype), np.zeros((n_seeds, 1), dtype)
        else:
            critic_h = self._padded(draws.critic_h, 1)
            critic_0 = self._padded(np.swapaxes(draws.critic_w, -1, -2), 2)
            critic_b = self._padded(draws.critic_b, 1)
        self.critics = np.repeat(np.repeat(critic_0[:, None, None], 2, axis=1), self.n_critics, axis=2)
        self.values = np.zeros((n_seeds, *((N_CELLS, N_CELLS) if s.critic == "exact" else (1, 1))), dtype)
        self.arrays = {  # of all seeds; see compiled_layout.Seed
            "landmarks": draws.landmarks,
            "power": np.stack([self._power(matrix) for matrix in draws.matrix]).astype(dtype),
            "critic_h": critic_h,
            "critic_0": critic_0,
            "critic_b": critic_b,
            "actor_h": self._padded(draws.actor_h, 1),
            "actor_w": self._padded(np.swapaxes(draws.actor_w, -1, -2), 2),
            "actor_b": self._padded(draws.actor_b, 1),
            "critics": self.critics,
            "values": self.values,
            "bounds": np.zeros((n_seeds, 2, *self.critics.shape[2:4]), dtype),
            "positions": draws.positions.copy(),
            "age": np.zeros((n_seeds, 1), dtype=np.int64),
        }
        self.readers = np.zeros(s.n_agents, int) if s.control == "centralised" else np.arange(s.n_agents)
        radius = np.inf if s.radius is None else s.radius
        self.numbers = np.array([s.discount, s.actor_step_size, s.critic_step_size, radius, s.width**-0.5], dtype)
        self.options = compiled_layout.Options(
            critic_steps=s.critic_steps,
            actor_samples=s.actor_samples,
            signal=compiled_layout.SIGNAL_CODES[s.signal],
            bootstrap=_BOOTSTRAPS.index(s.bootstrap),
            inverse=s.actor_schedule == "inverse",
            restart=s.start == "restart",
            average=s.average,
            linear=s.critic == "linear",
            exact=s.critic == "exact",
            gossiped_actors=s.actors == "gossiped",
            centralised=s.control == "centralised",
            local=s.credit == "local",
            own_share=own_share(s.n_agents, s.gossip_rounds),
            split=compiled_layout.SPLIT_CODES[s.split],
            restart_kernel=s.reset == "restart_kernel",
            discount=s.discount,
            reward_shift=s.reward_shift,
            reward_scale=s.reward_scale,
        )

    def _padded(self, array: np.ndarray, axes: int) -> np.ndarray:
        """Zero-pad the last axes to a multiple of the lanes."""
        behind = -self.setting.width % _LANES
        return np.ascontiguousarray(np.pad(array, [(0, 0)] * (array.ndim - axes) + [(0, behind)] * axes), self.dtype)

    def _power(self, matrix: np.ndarray) -> np.ndarray:
        """A^t_gossip among the agents' critics; Algorithm 3's critic does not gossip."""
        power = np.eye(self.n_critics)
        n = self.decentralised
        power[:n, :n] = consensus_power(torch.as_tensor(matrix), self.setting.gossip_rounds).numpy()[:n, :n]
        return power

    def run(
        self,
        pool: Executor,
        done: int,
        iterations: int,
        uniforms: np.ndarray,
        redrawn: np.ndarray,
        statistics: np.ndarray,
    ) -> None:
        """Advance every seed. The kernel releases the GIL, so seeds run in parallel."""
        tables = compiled_layout.Tables(self.numbers, SCALED.astype(self.dtype), DISTANCE, NEXT_CELL, self.readers)
        arrays = self.arrays | {"uniforms": uniforms, "redrawn": redrawn, "statistics": statistics}

        def one(s: int) -> None:
            seed = compiled_layout.Seed(**{name: array[s] for name, array in arrays.items()})
            scratch = compiled_layout.make_scratch(self.options, seed)
            compiled_training.run(self.options, tables, seed, scratch, done, iterations)

        list(pool.map(one, range(len(uniforms))))

    def refresh(self) -> None:
        """An exact critic: V of the current policies, in the agents' learning reward, with the TD target's resets."""
        s, c = self.setting, chain(self.setting)
        paid = (reward_table(self.arrays["landmarks"]) + s.reward_shift) * s.reward_scale
        table, values = policy_table(self.policies()).astype(float), self.values.astype(float)
        while True:
            following = expected_next(paid + c.stay * values, table, NEXT_CELL)
            following += c.leave * values.mean((-2, -1), keepdims=True)
            change = np.abs(following - values).max()
            values = following
            if not change > _CLOSE * (1 - s.discount):  # NaN ends the loop too
                break
        self.values[:] = values

    def policies(self) -> Policies:
        m = self.setting.width
        return Policies(
            self.arrays["actor_h"][..., :m].copy(),
            np.swapaxes(self.arrays["actor_w"][..., :m, :m], -1, -2).copy(),
            self.arrays["actor_b"][..., :m].copy(),
        )

    def weights(self, when: int) -> np.ndarray:
        """Critic weights after (0) or before (1) the last gossip; shapes as in Critics."""
        weights = self.critics[:, when]
        if self.setting.critic == "linear":
            return weights.copy()
        m = self.setting.width
        return np.swapaxes(weights[..., :m, :m], -1, -2).copy()


def _row(s: Setting, state: _State, statistics: np.ndarray, iterations: int) -> dict[str, np.ndarray]:
    """Log entries of one point, each (S,)."""
    steps = iterations * s.steps_per_iteration
    flat = state.critics.reshape(*state.critics.shape[:3], -1)  # padding adds nothing
    n = state.decentralised
    flat, before = flat[:, 0], flat[:, 1, :n]
    distance = np.full(len(flat), np.nan)
    if s.yardstick:
        distance = np.linalg.norm(flat[:, :n].mean(1) - flat[:, n], axis=-1)
    return {
        "reward": statistics[:, compiled_layout.REWARD] / steps,
        "value": statistics[:, compiled_layout.VALUE] / iterations,
        "positive": statistics[:, compiled_layout.POSITIVE] / iterations,
        "entropy": statistics[:, compiled_layout.ENTROPY] / (iterations * s.actor_samples * s.n_agents),
        "projected": statistics[:, compiled_layout.PROJECTED] / iterations,
        "skipped": statistics[:, compiled_layout.SKIPPED],
        "dead": _dead(s, state),
        "dead_actors": _dead_actors(s, state),
        "disagreement_before": _disagreement(before),
        "disagreement_after": _disagreement(flat[:, :n]),
        "distance": distance,
    }


def _disagreement(weights: np.ndarray) -> np.ndarray:
    """As algorithm.gossip.disagreement: (S, N, n_params) -> (S,)."""
    if weights.shape[1] == 0:
        return np.zeros(len(weights))
    distance = weights - weights.mean(1, keepdims=True)
    return np.sqrt((distance**2).sum(-1).mean(-1))


def _dead(s: Setting, state: _State) -> np.ndarray:
    """Share of last hidden units that are zero on 64 random states (and actions), mean over critics."""
    if s.critic == "linear":
        return np.zeros(len(state.critics))
    positions = _some_states(s)
    reads_actions = critic_kind(s.signal) == "q"
    actions = np.random.default_rng(1).integers(N_ACTIONS, size=positions.shape) if reads_actions else None
    x0 = encode_critic(positions, actions).astype(state.dtype) @ state.arrays["critic_h"]  # (S, 64, m)
    hidden = _hidden(state.critics[:, 0], x0[:, None], s.width)
    return (hidden[..., : s.width] <= 0).all(-2).mean((-2, -1))


def _dead_actors(s: Setting, state: _State) -> np.ndarray:
    """Share of actors whose last hidden units are all zero on 64 random states."""
    x = np.stack([encode_actor(_some_states(s), i) for i in range(s.n_agents)]).astype(state.dtype)
    hidden = _hidden(state.arrays["actor_w"], x @ state.arrays["actor_h"], s.width)  # (S, N, 64, m)
    return (hidden <= 0).all((-2, -1)).mean(-1)


def _some_states(s: Setting) -> np.ndarray:
    return np.random.default_rng(0).integers(N_CELLS, size=(64, s.n_agents))


def _hidden(w: np.ndarray, x0: np.ndarray, width: int) -> np.ndarray:
    """x^(D) of Eq. (5): w (..., D, m, m), inputs first; x0 (..., batch, m)."""
    x = x0
    with np.errstate(over="ignore", invalid="ignore"):  # the log shows a diverged critic
        for layer in range(w.shape[-3]):
            x = np.maximum(x @ w[..., layer, :, :], 0) / np.asarray(width**0.5, x.dtype)
    return x


def policy_table(policies: Policies) -> np.ndarray:
    """Action probabilities of two agents in all states: (S, 2, 65, 65, 5), indexed by agent, own cell, other's cell."""
    own, other = np.divmod(np.arange(N_CELLS**2), N_CELLS)
    x = encode_actor(np.stack([own, other], axis=-1), 0).astype(policies.h.dtype)
    n_seeds, n_agents, _, width = policies.h.shape
    table = np.empty((n_seeds * n_agents, len(x), N_ACTIONS), policies.h.dtype)
    w = np.ascontiguousarray(np.swapaxes(policies.w, -1, -2))  # inputs first
    hidden = np.empty((len(table), w.shape[2] + 1, width), table.dtype)
    on = np.empty((len(table), max(width, x.shape[1]) + 1), np.int64)
    scale = np.asarray(width**-0.5, table.dtype)[()]
    flat = (array.reshape(len(table), *array.shape[2:]) for array in (policies.h, w, policies.b))
    with _pool() as pool:
        for _ in pool.map(lambda arrays: fill_table(x, scale, *arrays), zip(*flat, hidden, table, on, strict=True)):
            pass
    return table.reshape(n_seeds, n_agents, N_CELLS, N_CELLS, N_ACTIONS)
