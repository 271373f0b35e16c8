"""What a run is worth: exact values of its policies for two agents, sampled rewards for more, and the baselines."""

from functools import lru_cache
from itertools import product

import numpy as np
from scipy.stats import t

from rlhf_marl.gridworld.exact import (
    constant_policies,
    optimal_values,
    policy_values,
    reward_table,
    uniform_policies,
)
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import DISTANCE, EPISODE, N_ACTIONS, N_CELLS, NEXT_CELL, team_reward
from rlhf_marl.gridworld.training import Policies, policy_table
from rlhf_marl.gridworld.world import draw_world

_SAMPLES = 20_000  # positions that baselines of more than two agents are averaged over


def exact_values(landmarks: np.ndarray, policies: Policies) -> np.ndarray:
    """J of two agents' policies: mean reward per step of an episode from uniform positions, (S,)."""
    return policy_values(reward_table(landmarks), policy_table(policies).astype(float), EPISODE)


def baselines(setting: Setting, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """What a setting's curves are held against, for a study's seeds, (S,); kept, since most settings share it.

    random: the uniform policy. bound: an upper bound of the best policy (`relaxed_optimum`). For two agents also
    constant: the best constant joint action, optimum: the best policy, and start: the setting's initial policies, all
    exact; for more agents the bound stands for the optimum.
    """
    found = _baselines(setting.n_agents, seed, seeds)
    if setting.n_agents == 2:
        found = found | {"start": _start(setting.width, setting.depth, setting.actor_output_scale, seed, seeds)}
    return found


@lru_cache
def _baselines(n_agents: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    return baselines_of(draw_world(Setting(n_agents=n_agents, width=1, depth=1), seed, range(seeds)).landmarks)


@lru_cache
def _start(width: int, depth: int, output_scale: float, seed: int, seeds: int) -> np.ndarray:
    setting = Setting(width=width, depth=depth, actor_output_scale=output_scale)
    world = draw_world(setting, seed, range(seeds))
    policies = Policies(*(a.astype(np.float32) for a in (world.actor_h, world.actor_w, world.actor_b)))
    return exact_values(world.landmarks, policies)


def baselines_of(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """The baselines that landmarks alone decide; (S, N) cells."""
    bound = relaxed_optimum(landmarks)
    if landmarks.shape[-1] != 2:
        return {"random": _sampled_random(landmarks), "optimum": bound, "bound": bound}
    rewards = reward_table(landmarks)

    def value(policies: np.ndarray) -> np.ndarray:
        return policy_values(rewards, np.broadcast_to(policies, (len(landmarks), *policies.shape)), EPISODE)

    constant = [value(constant_policies(a, b)) for a, b in product(range(N_ACTIONS), repeat=2)]
    return {
        "random": value(uniform_policies()),
        "constant": np.max(constant, axis=0),
        "optimum": optimal_values(rewards, EPISODE),
        "bound": bound,
    }


def _sampled_random(landmarks: np.ndarray) -> np.ndarray:
    """The uniform policy from uniform positions keeps every agent's cell near uniform: mean over simulated episodes."""
    generator = np.random.default_rng(0)
    positions = generator.integers(N_CELLS, size=(_SAMPLES // EPISODE, landmarks.shape[-1]))
    total = np.zeros(len(landmarks))
    for _ in range(EPISODE):
        positions = NEXT_CELL[positions, generator.integers(N_ACTIONS, size=positions.shape)]
        total += np.stack([team_reward(positions, row).mean() for row in landmarks])
    return total / EPISODE


def relaxed_optimum(landmarks: np.ndarray) -> np.ndarray:
    """An upper bound of the best policy's value: every landmark is approached from the start by its closest agent at
    full speed, whatever else that agent has to do. (S, N) cells -> (S,)."""
    generator = np.random.default_rng(0)
    positions = generator.integers(N_CELLS, size=(_SAMPLES, landmarks.shape[-1]))
    left = np.arange(1, EPISODE + 1)
    values = []
    for row in landmarks:
        closest = DISTANCE[positions[:, :, None], row].min(1)  # (samples, landmarks)
        values.append(-np.maximum(closest[..., None] - left, 0).sum(1).mean())
    return np.array(values)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and Student's 95% interval; NaNs where there are fewer than two seeds."""
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    mean, n = float(values.mean()), len(values)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def decay(gaps: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Minus the slope of log mean gap against log t over the second half: gaps (S, P), t (P,) -> (S,).

    The jackknife's pseudo-values, leaving out one seed at a time: their mean is the estimate and their spread gives its
    interval.
    """

    def slope(rows: np.ndarray) -> float:
        late = slice(len(t) // 2, None)
        return -float(np.polyfit(np.log(t[late]), np.log(np.maximum(rows.mean(0)[late], 1e-9)), 1)[0])

    n = len(gaps)
    left_out = np.array([slope(np.delete(gaps, i, axis=0)) for i in range(n)])
    return n * slope(gaps) - (n - 1) * left_out
