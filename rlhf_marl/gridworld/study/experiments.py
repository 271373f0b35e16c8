"""The paper's ablations, and ours: which settings each one compares.

An arm is a function of the regime's own settings, so that "five critic steps" can mean five times the regime's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Base = Mapping[str, Any]
Arm = Callable[[Base], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """title: of the figure. source: where the paper has it. arms: label to what differs from the regime."""

    title: str
    source: str
    arms: dict[str, Arm]


def _set(**changes: Any) -> Arm:
    return lambda base: changes


def _times(critic: int, actor: int, *, equal_samples: bool = False) -> Arm:
    """K and M multiplied; with equal samples, fewer iterations for the same number of the environment's steps."""

    def arm(base: Base) -> dict[str, Any]:
        k, m = base.get("critic_steps", 1), base.get("actor_samples", 1)
        changes = {"critic_steps": critic * k, "actor_samples": actor * m}
        if equal_samples:
            steps = base.get("iterations", 20_000) * (k + m - 1)
            changes["iterations"] = max(1, steps // (critic * k + actor * m - 1))
        return changes

    return arm


def _inverse(base: Base) -> dict[str, Any]:
    """α_t = α / t with the regime's constant step reached after a twentieth of the run."""
    alpha, iterations = base.get("actor_step_size", 0.005), base.get("iterations", 20_000)
    return {"actor_schedule": "inverse", "actor_step_size": alpha * iterations / 20}


_SLOW = {"n_agents": 4, "graph": "ring", "matrix": "metropolis_hastings", "laziness": 0.95, "split": "closest"}

EXPERIMENTS: dict[str, Experiment] = {
    "fig2": Experiment(
        "TD error against Q value", "Figures 2 and 10", {"TD error": _set(), "Q value": _set(signal="q_value")}
    ),
    "fig5": Experiment(
        "Gossip rounds",
        "Figure 5",
        {f"{t} rounds": _set(gossip_rounds=t, split="closest") for t in (0, 10, 20)},
    ),
    "fig6": Experiment("Width m", "Figure 6", {f"m = {m}": _set(width=m) for m in (10, 20, 40)}),
    "fig7": Experiment("Depth D", "Figure 7", {f"D = {d}": _set(depth=d) for d in (5, 20, 40)}),
    "fig8": Experiment("Number of agents N", "Figure 8", {f"N = {n}": _set(n_agents=n) for n in (2, 3, 4)}),
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
        {name: _set(signal=name) for name in ("td_q_literal", "td_q", "td_v", "q_value", "counterfactual")},
    ),
    "rate": Experiment("Step sizes α/t", "Theorem 5.10 (1)", {"constant": _set(), "α / t": _inverse}),
    "slow_graph": Experiment(
        "Gossip on a slow graph: a lazy ring of four",
        "Theorem 5.10 (5)",
        {f"{t} rounds": _set(gossip_rounds=t, **_SLOW) for t in (0, 10, 20, 200)},
    ),
    "critic": Experiment("Deep and linear critic", "Table 1", {"deep": _set(), "linear": _set(critic="linear")}),
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
