"""Figures of the study: mean curves with 95% intervals and the baselines, readable in grey."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.gridworld.joint_optimum import MOST_EXACT
from rlhf_marl.gridworld.study.experiments import Experiment
from rlhf_marl.gridworld.study.measure import decay, paired
from rlhf_marl.gridworld.study.results import Result

# Distinct without colour: dashes, markers, and colours of different lightness.
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*")
_COLOURS = ("#0b3c5d", "#d1603d", "#6a994e", "#7b2d8b", "#b8860b", "#5b8fb9", "#222222", "#c2185b")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf_marl",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
}


def draw(experiment: Experiment, regime: str, arms: Mapping[str, Result], path: Path) -> None:
    """Write path.svg and path.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(_STYLE):
        extra = _EXTRA.get(experiment.title)
        figure, axes = pyplot.subplots(1, 2 if extra else 1, figsize=(10 if extra else 5.6, 3.6), squeeze=False)
        _curves(axes[0, 0], arms, experiment.shown)
        if extra:
            extra(axes[0, 1], arms)
        figure.suptitle(f"{experiment.title} ({experiment.source}; {regime})", fontsize=10)
        figure.tight_layout()
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"))
        pyplot.close(figure)


def _curves(axes: Any, arms: Mapping[str, Result], shown: str) -> None:
    """Value, or sampled reward, against environment steps; baselines as thin lines."""
    for i, (label, result) in enumerate(arms.items()):
        steps = result.arrays["points"] * result.setting.steps_per_iteration
        _band(axes, i, steps, paired(result.arrays[shown], result.arrays), label)
    for name, words in (("optimum", "best policy"), ("constant", "best constant action"), ("random", "random")):
        _baseline(axes, arms, name, words)
    exact = shown == "value" and all(result.setting.n_agents == 2 for result in arms.values())
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"{'exact' if exact else 'sampled'} team reward per step\n(95% bands: paired with random)")
    axes.legend(fontsize=7, edgecolor="none", framealpha=0.8, loc="best")


def _baseline(axes: Any, arms: Mapping[str, Result], name: str, words: str) -> None:
    """One grey line where all arms have the same; else a line per number of agents, in its arm's colour."""
    levels: dict[int, tuple[int, str, float]] = {}
    for i, (label, result) in enumerate(arms.items()):
        if name in result.arrays:
            levels.setdefault(result.setting.n_agents, (i, label, float(result.arrays[name].mean())))
    for place, (n_agents, (i, label, level)) in enumerate(levels.items()):
        colour, suffix = ("0.35", "") if len(levels) == 1 else (_COLOURS[i % len(_COLOURS)], f" ({label})")
        shown = words if name != "optimum" or n_agents <= MOST_EXACT else "bound of the best"
        axes.axhline(level, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            shown + suffix, (1 - 0.33 * place, level), xycoords=("axes fraction", "data"), fontsize=7, color=colour,
            ha="right", va="bottom",
        )  # fmt: skip


def _band(axes: Any, i: int, x: np.ndarray, curves: np.ndarray, label: str) -> None:
    """Mean over seeds with its 95% interval; curves: (S, P)."""
    mean, low, high = np.array([over_seeds(column) for column in curves.T]).T
    _line(axes, i, x, mean, label)
    axes.fill_between(x, low, high, color=_COLOURS[i % len(_COLOURS)], alpha=0.18, linewidth=0)


def _line(axes: Any, i: int, x: np.ndarray, y: np.ndarray, label: str) -> None:
    axes.plot(
        x, y, label=label, color=_COLOURS[i % len(_COLOURS)], linestyle=_LINES[i % len(_LINES)],
        marker=_MARKERS[i % len(_MARKERS)], markersize=3, markevery=max(1, len(x) // 6), linewidth=1.4,
    )  # fmt: skip


def _gap(axes: Any, arms: Mapping[str, Result]) -> None:
    """J* - J against t on logarithmic axes, with the fitted power of t, and with 1/t beside it."""
    for i, (label, result) in enumerate(arms.items()):
        gaps = result.arrays["optimum"][:, None] - result.arrays["value"]
        t = result.arrays["points"]
        _band(axes, i, t, gaps, f"{label}: t^{-over_seeds(decay(gaps, t))[0]:.2f} at the end")
    axes.plot(t, gaps[:, 0].mean() * t[0] / t, color="0.4", linewidth=0.8, label="1 / t")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("iteration t")
    axes.set_ylabel("J* - J, reward per step")
    axes.legend(fontsize=7, frameon=False)


def _consensus(axes: Any, arms: Mapping[str, Result]) -> None:
    """Disagreement of the critics after rounds of gossip, beside σ₂ᵗ and the paper's bound."""
    result = list(arms.values())[-1]
    error = result.arrays["consensus"]
    rounds = np.arange(error.shape[1])
    _band(axes, 0, rounds, error, "measured")
    _band(axes, 1, rounds, (1 - result.arrays["gap"][:, None]) ** rounds, "σ₂ᵗ")
    bound = (1 - result.arrays["eta"][:, None] ** (result.setting.n_agents - 1)) ** rounds
    _band(axes, 2, rounds, bound, "(1 - ηᴺ⁻¹)ᵗ")
    axes.set_yscale("log")
    axes.set_xlabel("gossip rounds t")
    axes.set_ylabel("disagreement, relative")
    axes.legend(fontsize=7, frameon=False)


def _distance(axes: Any, arms: Mapping[str, Result]) -> None:
    """Distance between the mean decentralised critic and Algorithm 3 on the same samples."""
    result = arms["decentralised"]
    steps = result.arrays["points"] * result.setting.steps_per_iteration
    for i, (name, label) in enumerate(
        (("distance", "mean critic to Algorithm 3"), ("disagreement_before", "among agents before gossip"),
         ("disagreement_after", "among agents after gossip"))
    ):  # fmt: skip
        _band(axes, i, steps, result.arrays[name], label)
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("Frobenius norm of weights")
    axes.legend(fontsize=7, frameon=False)


# What stands beside the rewards, by the experiment's title.
_EXTRA = {
    "Step sizes α/t": _gap,
    "Gossip on a slow graph: a lazy ring of four": _consensus,
    "Decentralised critics and Algorithm 3": _distance,
}
