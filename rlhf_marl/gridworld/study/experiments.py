"""The paper's ablations, and ours: which settings each one compares.

An arm is a function of the regime's setting, so that "five critic steps" can mean five times the regime's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rlhf_marl.gridworld.compiled_layout import SIGNAL_CODES
from rlhf_marl.gridworld.setting import Setting

Arm = Callable[[Setting], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """title: of the figure. source: where the paper has it. arms: label to what differs from the regime. shown: the
    curve that is drawn: value (exact for two agents), or the sampled reward, for which all numbers of agents are alike.
    regime: the only one it runs under, if it is about one.
    """

    title: str
    source: str
    arms: dict[str, Arm]
    shown: Literal["value", "reward"] = "value"
    regime: str | None = None


def _set(**changes: Any) -> Arm:
    return lambda base: changes


def _times(critic: int, actor: int, *, equal_samples: bool = False) -> Arm:
    """K and M multiplied; with equal samples, fewer iterations for the same number of environment steps."""

    def arm(base: Setting) -> dict[str, Any]:
        k, m = critic * base.critic_steps, actor * base.actor_samples
        changes = {"critic_steps": k, "actor_samples": m}
        if equal_samples:
            changes["iterations"] = max(1, base.iterations * base.steps_per_iteration // (k + m - 1))
        return changes

    return arm


def _inverse(share: int) -> Arm:
    """α_t = α / t; a whole α reaches the regime's constant step after a twentieth of the run."""

    def arm(base: Setting) -> dict[str, Any]:
        alpha = base.actor_step_size * base.iterations / 20
        return {"actor_schedule": "inverse", "actor_step_size": alpha / share}

    return arm


def _offset(shift: float, **changes: Any) -> Arm:
    return lambda base: changes | {"reward_shift": base.reward_shift + shift}


def _near_optimum(**changes: Any) -> Arm:
    """Ten times the regime's environment steps, with the K and M that bring two agents furthest."""

    def arm(base: Setting) -> dict[str, Any]:
        steps = 10 * base.iterations * base.steps_per_iteration
        found = {"critic_steps": 50, "actor_samples": 50, "actor_step_size": 0.1, "iterations": max(1, steps // 99)}
        return found | changes

    return arm


def _longer(times: int) -> Arm:
    return lambda base: {"iterations": times * base.iterations}


def _ascent(**changes: Any) -> Arm:
    """Exact directions need no samples, so fewer iterations do."""
    exact = {"critic": "exact", "direction": "exact", "actor_step_size": 0.1}
    return lambda base: exact | {"iterations": max(1, base.iterations // 2)} | changes


_SLOW = {"n_agents": 4, "graph": "ring", "matrix": "metropolis_hastings", "laziness": 0.95}
CONTROL, AVERAGED = "α = 10⁻¹²", "rewards averaged"
_AVERAGED = _set(gossip_rounds=0, split="shared")  # every critic learns from the mean reward: Algorithm 3, N times

EXPERIMENTS: dict[str, Experiment] = {
    "fig2": Experiment(
        "TD error against Q value",
        "Figures 2 and 10",
        {"TD error": _set(), "Q value": _set(signal="q_value"), CONTROL: _set(actor_step_size=1e-12)},
    ),
    "fig5": Experiment(
        "Gossip rounds",
        "Figure 5",
        {f"{t} rounds": _set(gossip_rounds=t, split="closest") for t in (0, 10, 20)} | {AVERAGED: _AVERAGED},
    ),
    "owned": Experiment(
        "Gossip rounds, landmark j credited to agent j",
        "Figure 5",
        {f"{t} rounds": _set(gossip_rounds=t, split="owned") for t in (0, 10, 20)} | {AVERAGED: _AVERAGED},
    ),
    "fig6": Experiment("Width m", "Figure 6", {f"m = {m}": _set(width=m) for m in (10, 20, 40)}),
    "fig7": Experiment("Depth D", "Figure 7", {f"D = {d}": _set(depth=d) for d in (5, 20, 40)}),
    "fig8": Experiment("Number of agents N", "Figure 8", {f"N = {n}": _set(n_agents=n) for n in (2, 3, 4)}, "reward"),
    "fig9": Experiment(
        "Critic steps K and actor samples M",
        "Figure 9",
        {
            "K, M": _times(1, 1),
            "K, 5 M": _times(1, 5),
            "5 K, M": _times(5, 1),
            "K, 5 M, equal samples": _times(1, 5, equal_samples=True),
            "5 K, M, equal samples": _times(5, 1, equal_samples=True),
        },
    ),
    "signals": Experiment(
        "Actor signals",
        "Remark 1",
        {name: _set(signal=name) for name in SIGNAL_CODES},
    ),
    "offset": Experiment(
        "A constant added to the rewards",
        "Assumption 5.3",
        {
            f"{name}, {reward}": _offset(shift, **changes)
            for name, changes in (
                ("δ", {"signal": "td_q_literal"}),
                ("-δ", {"signal": "td_q"}),
                ("Q, warm critic", {"signal": "q_value", "start": "warm"}),
            )
            for reward, shift in (("r", 0.0), ("r + 24", 24.0))
        },
    ),
    "rate": Experiment(
        "Step sizes α/t",
        "Theorem 5.10 (1)",
        {"constant": _set(), "α / t": _inverse(1), "α / 3t": _inverse(3), "α / 10t": _inverse(10)},
    ),
    "slow_graph": Experiment(
        "Gossip on a slow graph: a lazy ring of four",
        "Theorem 5.10 (5)",
        {f"{t} rounds": _set(gossip_rounds=t, split="closest", **_SLOW) for t in (0, 10, 20, 200)}
        | {AVERAGED: _set(gossip_rounds=0, split="shared", **_SLOW)},
    ),
    "critic": Experiment("Deep and linear critic", "Table 1", {"deep": _set(), "linear": _set(critic="linear")}),
    "optimum": Experiment(
        "How near to the best policy",
        "Theorem 5.10",
        {
            "ten times as long": _longer(10),
            "larger K and M": _near_optimum(),
            "actors gossiped": _near_optimum(actors="gossiped"),
            CONTROL: _near_optimum(actor_step_size=1e-12),
        },
        regime="working",
    ),
    "losses": Experiment(
        "What the gap to the best policy is lost to",
        "Theorem 5.10",
        {
            f"{name}{suffix}": arm(**changes)
            for suffix, changes in (("", {}), (", actors gossiped", {"actors": "gossiped"}))
            for name, arm in (
                ("sampled", _near_optimum),
                ("averaged rewards", partial(_near_optimum, split="shared")),
                ("exact critic", partial(_near_optimum, critic="exact")),
                ("exact direction", _ascent),
            )
        },
        regime="working",
    ),
    "centralised": Experiment(
        "Decentralised critics and Algorithm 3",
        "Algorithm 3",
        {
            "decentralised": _set(split="closest", yardstick=True),
            "centralised": _set(split="closest", control="centralised"),
            "independent": _set(split="closest", gossip_rounds=0),
        },
    ),
}

ALIASES = {"fig10": "fig2"}  # the same curves, printed twice
