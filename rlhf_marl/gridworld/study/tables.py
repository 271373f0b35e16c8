"""claims.md: verdicts, progress per signal, and errors of critics and actors."""

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.gridworld.study.claims import Arms, Verdict, outcome
from rlhf_marl.gridworld.study.config import StudyConfig

_DIAGNOSED = ("critic_error", "critic_correlation", "msbe", "cosine", "messages", "bytes")


def tables(verdicts: Sequence[Verdict], results: Mapping[str, Mapping[str, Arms]], config: StudyConfig) -> str:
    """The tables as Markdown; results are regime, experiment, arm."""
    found = (
        claims_table(verdicts, config),
        optimum_table(results),
        signals_table(results),
        offset_table(results),
        diagnostics_table(results),
    )
    return "\n\n".join("\n".join(lines) for lines in found if lines) + "\n"


def claims_table(verdicts: Sequence[Verdict], config: StudyConfig) -> list[str]:
    """A row per claim, a column per regime that has verdicts."""
    judged = {v.regime for v in verdicts}
    regimes = [regime for regime in config.regimes if regime in judged]
    lines = [
        f"{config.seeds} seeds, paired; mean difference [95% interval], in reward per step unless named otherwise; "
        "and p after Holm's correction over the claims tested in a regime, which the verdict goes by.",
        "",
        "| source | claim | " + " | ".join(regimes) + " |",
        "| --- | --- | " + " | ".join("---" for _ in regimes) + " |",
    ]
    rows: dict[tuple[str, str], dict[str, Verdict]] = {}
    for v in verdicts:
        rows.setdefault((v.source, v.statement), {})[v.regime] = v
    for (source, statement), by_regime in rows.items():
        cells = [_cell(by_regime[r]) if r in by_regime else "" for r in regimes]
        lines.append(f"| {source} | {statement} | " + " | ".join(cells) + " |")
    return lines


def _cell(v: Verdict) -> str:
    if np.isnan(v.p):
        return v.verdict
    unit = "" if v.unit == "reward per step" else f" ({v.unit})"
    p = "p < 0.001" if v.p < 0.001 else f"p = {v.p:.3f}"
    return f"**{v.verdict}** {v.mean:+.2f} [{v.low:+.2f}, {v.high:+.2f}]{unit}, {p}"


def optimum_table(results: Mapping[str, Mapping[str, Arms]]) -> list[str]:
    """Per arm near the optimum, the share of the way from the random to the best policy, and what is missing."""
    rows = []
    for regime, experiments in results.items():
        for name in ("optimum", "losses"):
            for arm, result in experiments.get(name, {}).items():
                arrays = result.arrays
                gap = arrays["optimum"] - outcome(result)
                share = 1 - gap / (arrays["optimum"] - arrays["random"]).mean()
                rows.append(f"| {regime} | {arm} | {_numbers(share, '.3f')} | {_numbers(gap, '.2f')} |")
    if not rows:
        return []
    return [
        "## How near to the best policy",
        "",
        "Of the way from the random to the best policy, and the reward per step that is missing to the best policy, in "
        "the last fifth of the run [95% interval].",
        "",
        "| regime | arm | of the way | missing |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _numbers(values: np.ndarray, digits: str) -> str:
    mean, low, high = over_seeds(values)
    return f"{mean:{digits}} [{low:{digits}}, {high:{digits}}]"


def signals_table(results: Mapping[str, Mapping[str, Arms]]) -> list[str]:
    """Per signal and regime, the share of the way from the random to the best policy, in the run's last fifth."""
    regimes = {regime: arms["signals"] for regime, arms in results.items() if "signals" in arms}
    if not regimes:
        return []
    first = next(iter(next(iter(regimes.values())).values())).arrays
    constant = ""
    if "constant" in first:
        constant = f"; the best constant joint action gets {_numbers(_ways(first['constant'], first), '.2f')}"
    lines = [
        "## How far each signal gets",
        "",
        "Of the way from the random to the best policy, mean over seeds [95% interval], last fifth of the "
        f"run{constant}.",
        "",
        "| signal | " + " | ".join(regimes) + " |",
        "| --- |" + " --- |" * len(regimes),
    ]
    for arm in next(iter(regimes.values())):
        shares = [_ways(outcome(arms[arm]), arms[arm].arrays) for arms in regimes.values()]
        lines.append(f"| `{arm}` | " + " | ".join(_numbers(share, ".2f") for share in shares) + " |")
    return lines


def offset_table(results: Mapping[str, Mapping[str, Arms]]) -> list[str]:
    """Effect of a constant reward offset on signals and policies."""
    regimes = {regime: arms["offset"] for regime, arms in results.items() if "offset" in arms}
    if not regimes:
        return []
    lines = [
        "## What a constant added to the rewards does",
        "",
        "In the run's last tenth: the share of actor signals that are positive, the policies' entropy (uniform: 1.61 "
        "nats), the share of dead actors (no unit of the last layer on: uniform for ever), mean |Q|, and the way from "
        "the random to the best policy (last fifth).",
        "",
        "| regime | signal, rewards | positive | entropy | dead actors | mean abs. Q | of the way |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for regime, arms in regimes.items():
        for arm, result in arms.items():
            last = [
                _numbers(result.arrays[name][:, -1], digits)
                for name, digits in (
                    ("positive", ".3f"),
                    ("entropy", ".2f"),
                    ("dead_actors", ".2f"),
                    ("critic_value", ".3g"),
                )
            ]
            lines.append(
                f"| {regime} | {arm} | {' | '.join(last)} | {_numbers(_ways(outcome(result), result.arrays), '.2f')} |"
            )
    return lines


def diagnostics_table(results: Mapping[str, Mapping[str, Arms]]) -> list[str]:
    """Critics and directions against exact ones, at the end of the runs with two agents, and what was gossiped."""
    rows = []
    for regime, experiments in results.items():
        arms = {**experiments.get("signals", {}), **experiments.get("critic", {})}
        arms.pop("deep", None)  # the regime's own signal, which is there already
        for arm, result in arms.items():
            found = {name: array for name, array in result.arrays.items() if name in _DIAGNOSED}
            if len(found) == len(_DIAGNOSED):
                rows.append(
                    f"| {regime} | {arm} | {_numbers(found['critic_error'], '.3g')}"
                    f" | {_numbers(found['critic_correlation'], '.2f')} | {_numbers(found['msbe'], '.3g')}"
                    f" | {_numbers(found['cosine'], '.2f')}"
                    f" | {found['messages'].mean():,.0f} | {found['bytes'].mean() / 1e6:,.0f} MB |"
                )
    if not rows:
        return []
    return [
        "## What critics and actors got right",
        "",
        "At the end of the runs, against exact values of the policies of that moment (the first few seeds): "
        "the critic's root mean square error and correlation with the exact Q or V, in the rewards that the agents "
        "learn from; the Bellman error MSBE of Eq. (6); and the cosine between the exact gradient of J and E[d], the "
        "mean of line 16's direction before line 17 normalises it. A message is one agent's values to one neighbour "
        "(Corollary 5.11).",
        "",
        "| regime | arm | error | correlation | MSBE | cosine | messages | bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _ways(values: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Per seed, as a share of the mean distance from the random to the best policy."""
    return (values - arrays["random"]) / (arrays["optimum"].mean() - arrays["random"].mean())
