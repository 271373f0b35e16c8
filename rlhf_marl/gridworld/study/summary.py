"""results.json: every curve with its interval, baselines, health figures, diagnostics and verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.gridworld.study.claims import Arms, Verdict
from rlhf_marl.gridworld.study.config import StudyConfig
from rlhf_marl.gridworld.study.health import symptoms
from rlhf_marl.gridworld.study.measure import decay, paired
from rlhf_marl.gridworld.study.results import VERSION, Result

_BASELINES = ("random", "start", "constant", "optimum", "bound")
_HEALTH = ("critic_value", "positive", "entropy", "projected", "skipped", "dead", "dead_actors")
_CRITICS = ("disagreement_before", "disagreement_after", "distance")
_DIAGNOSED = ("critic_error", "critic_correlation", "msbe", "cosine", "messages", "bytes")


def summary(
    config: StudyConfig, verdicts: Sequence[Verdict], results: Mapping[str, Mapping[str, Arms]]
) -> dict[str, Any]:
    """Of a whole study; results are regime, experiment, arm."""
    runs = {id(r): r for experiments in results.values() for arms in experiments.values() for r in arms.values()}
    return {
        "version": VERSION,
        "config": config.model_dump(mode="json"),
        "seconds": sum(result.seconds for result in runs.values()),
        "claims": [verdict.as_json() for verdict in verdicts],
        "experiments": {
            regime: {name: {arm: _arm(result) for arm, result in arms.items()} for name, arms in experiments.items()}
            for regime, experiments in results.items()
        },
    }


def _arm(result: Result) -> dict[str, Any]:
    """One setting. Curves are over `iterations`, `consensus` over 0, 1, ... rounds of gossip; intervals of rewards are
    paired with the random policies'."""
    arrays = result.arrays
    gaps = arrays["optimum"][:, None] - arrays["value"]
    return {
        "setting": result.setting.model_dump(mode="json"),
        "seconds": round(result.seconds, 1),
        "iterations": arrays["points"].astype(int).tolist(),
        "value": _curve(paired(arrays["value"], arrays)),
        "reward": _curve(paired(arrays["reward"], arrays)),
        "gap": {**_curve(gaps), "power_of_1_over_t": _numbers(decay(gaps, arrays["points"]))},
        "baselines": {name: _rounded(float(arrays[name].mean())) for name in _BASELINES if name in arrays},
        "health": {name: [_rounded(float(x)) for x in arrays[name].mean(0)] for name in _HEALTH},
        "critics": {name: _curve(arrays[name]) for name in _CRITICS if np.isfinite(arrays[name]).all()},
        "consensus": _curve(arrays["consensus"]) if np.isfinite(arrays["consensus"]).all() else None,
        "spectral_gap": _numbers(arrays["gap"]),
        "eta": _numbers(arrays["eta"]),
        "diagnostics": {name: _numbers(arrays[name]) for name in _DIAGNOSED if name in arrays},
        "warnings": [words for _, words in symptoms(result)],
    }


def _curve(curve: np.ndarray) -> dict[str, list[float | None]]:
    """(S, P) -> mean and 95% interval at every point."""
    rows = [over_seeds(column) for column in curve.T]
    return {key: [_rounded(row[i]) for row in rows] for i, key in enumerate(("mean", "low", "high"))}


def _numbers(values: np.ndarray) -> list[float | None]:
    """Mean, low, high."""
    return [_rounded(x) for x in over_seeds(values)]


def _rounded(x: float) -> float | None:
    """Six digits; JSON has no NaN."""
    return float(f"{x:.6g}") if np.isfinite(x) else None
