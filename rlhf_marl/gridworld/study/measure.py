"""Value of a run: exact for two agents, sampled rewards for more; and the baselines."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.exact import policy_values, reward_table
from rlhf_marl.gridworld.joint_optimum import MOST_EXACT, joint_optimal_values
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE
from rlhf_marl.gridworld.state_independent import MOST_AGENTS, bounds, constant_values, random_values
from rlhf_marl.gridworld.training import Policies, policy_table, train

_EXACT = (2,)  # numbers of agents with dynamic programming
_ROLLED = 200  # episodes that the start of more agents than two is sampled over


def exact_values(landmarks: np.ndarray, policies: Policies) -> np.ndarray:
    """J of two agents' policies: mean reward per step of an episode from uniform positions, (S,)."""
    return policy_values(reward_table(landmarks), policy_table(policies).astype(float), EPISODE)


def baselines(setting: Setting, seed: int, seeds: int) -> dict[str, np.ndarray]:
    """Baselines of a setting's curves for a study's seeds, (S,); cached, since most settings share them.

    random: the uniform policy. constant: the best constant joint action, up to MOST_AGENTS agents. bound: above any
    policy. optimum: the best policy up to MOST_EXACT agents, else the bound. All these are exact. start: the setting's
    initial policies, exact for two agents, else sampled.
    """
    start = _start(
        setting.n_agents, setting.width, setting.depth, setting.actor_output_scale, setting.actors, seed, seeds
    )
    return _baselines(setting.n_agents, seed, seeds) | {"start": start}


@lru_cache
def _baselines(n_agents: int, seed: int, seeds: int) -> dict[str, np.ndarray]:
    return baselines_of(draw_all(Setting(n_agents=n_agents, width=1, depth=1), seed, range(seeds)).landmarks)


@lru_cache
def _start(
    n_agents: int, width: int, depth: int, output_scale: float, actors: Any, seed: int, seeds: int
) -> np.ndarray:
    setting = Setting(
        n_agents=n_agents,
        width=width,
        depth=depth,
        actor_output_scale=output_scale,
        actors=actors,
        actor_step_size=0.0,
        critic="linear",
        iterations=_ROLLED * EPISODE,
    )
    draws = draw_all(setting, seed, range(seeds))
    if n_agents not in _EXACT:
        return train(setting, seed, range(seeds), [setting.iterations], draws=draws).reward[:, 0]
    policies = Policies(*(a.astype(np.float32) for a in (draws.actor_h, draws.actor_w, draws.actor_b)))
    return exact_values(draws.landmarks, policies)


def baselines_of(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Baselines that depend only on the landmarks, (S, N) cells."""
    n_agents, bound = landmarks.shape[-1], bounds(landmarks)
    found = {"random": random_values(landmarks), "bound": bound, "optimum": bound}
    if n_agents <= MOST_AGENTS:
        found["constant"] = constant_values(landmarks)
    if n_agents <= MOST_EXACT:
        found["optimum"] = joint_optimal_values(landmarks)
    return found


def paired(curve: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """A reward curve minus each seed's random-policy value, plus the mean of those values.

    This keeps the mean but removes variance between easy and hard landmarks: intervals are those of the difference
    from random policies. (S, P) -> (S, P).
    """
    return curve - arrays["random"][:, None] + arrays["random"].mean()


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
