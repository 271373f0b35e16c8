"""The paper's claims, each with a measured paired difference and a verdict.

A run's outcome, per seed, is its value averaged over the last fifth of its points. Two arms share their seeds'
landmarks, initial weights and noise, so their outcomes are compared seed by seed, with Student's 95% interval of the
mean difference.

Verdicts. `negligible` is 2% of the way from the random to the best policy.
    "more": the difference is positive. Does not hold if the interval lies below 0 or within ±negligible (even if
    above 0). Otherwise holds if the interval lies above 0, else undetermined.
    "same": the difference is small. Holds if the interval lies within ±negligible, does not hold if it lies entirely
    outside, else undetermined.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rlhf_marl.gridworld.study.measure import decay, interval
from rlhf_marl.gridworld.study.results import Result

Arms = Mapping[str, Result]
NEGLIGIBLE = 0.02
_ONE, _MANY_M, _MANY_K = "K, M", "K, 5 M", "5 K, M"  # arms of Figure 9


@dataclass(frozen=True, slots=True)
class Claim:
    """difference: arms -> one number per seed, positive in the claimed direction.
    baseline: the baseline it needs; without it (see measure.py) the claim is omitted."""

    source: str
    statement: str
    experiment: str
    kind: Literal["more", "same"]
    difference: Callable[[Arms], np.ndarray]
    unit: str = "reward per step"
    baseline: str = "random"


@dataclass(frozen=True, slots=True)
class Verdict:
    source: str
    statement: str
    regime: str
    experiment: str
    unit: str
    mean: float
    low: float
    high: float
    negligible: float
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return {key: None if value != value else value for key, value in asdict(self).items()}


def outcome(result: Result) -> np.ndarray:
    """Value over the last fifth of the points, (S,)."""
    return late(result.arrays["value"])


def late(curve: np.ndarray) -> np.ndarray:
    """Mean over the last fifth of the points: (S, P) -> (S,)."""
    return curve[:, -max(1, curve.shape[1] // 5) :].mean(1)


def _against(better: str, worse: str) -> Callable[[Arms], np.ndarray]:
    return lambda arms: outcome(arms[better]) - outcome(arms[worse])


def _learns(arm: str) -> Callable[[Arms], np.ndarray]:
    """From the initial policies to the outcome."""
    return _over(arm, "start")


def _over(arm: str, baseline: str) -> Callable[[Arms], np.ndarray]:
    return lambda arms: outcome(arms[arm]) - arms[arm].arrays[baseline]


def _regret(more: str, fewer: str, *, share: bool = False) -> Callable[[Arms], np.ndarray]:
    """Gap from sampled reward to the bound, more agents minus fewer. The sampled reward is comparable across numbers of
    agents. With `share`, relative to the distance from random policies to the bound."""

    def gap(result: Result) -> np.ndarray:
        arrays = result.arrays
        found = arrays["bound"] - late(arrays["reward"])
        return found / (arrays["bound"] - arrays["random"]).mean() if share else found

    return lambda arms: gap(arms[more]) - gap(arms[fewer])


def _rate(arm: str) -> Callable[[Arms], np.ndarray]:
    """Power of 1/t at which the gap to the best policy shrinks late in the run."""

    def values(arms: Arms) -> np.ndarray:
        arrays = arms[arm].arrays
        return decay(arrays["optimum"][:, None] - arrays["value"], arrays["points"])

    return values


def _as_fast(arm: str) -> Callable[[Arms], np.ndarray]:
    return lambda arms: _rate(arm)(arms) - 1


def _offset(name: str) -> Callable[[Arms], np.ndarray]:
    return _against(f"{name}, r + 24", f"{name}, r")


def _faster_than_bound(arm: str) -> Callable[[Arms], np.ndarray]:
    """log10 of the bound (1 - η^(N-1))^t minus log10 of the measured disagreement, after ten rounds."""

    def values(arms: Arms) -> np.ndarray:
        result = arms[arm]
        rounds = 10
        bound = rounds * np.log10(1 - result.arrays["eta"] ** (result.setting.n_agents - 1))
        measured = np.log10(np.maximum(result.arrays["consensus"][:, rounds], 1e-12))
        return np.maximum(bound, -12) - measured

    return values


_TD, _GOSSIP, _WIDTH, _DEPTH = "Figure 2, 10", "Figure 5, Theorem 5.10 (5)", "Figure 6, Remark 5", "Figure 7, Remark 5"

CLAIMS = (
    Claim(_TD, "with the TD error agents learn: rewards rise", "fig2", "more", _learns("TD error")),
    Claim(_TD, "with the TD error agents beat random ones", "fig2", "more", _over("TD error", "random")),
    Claim(
        "(ours)",
        "with the TD error agents use the state: they beat the best constant action",
        "fig2",
        "more",
        _over("TD error", "constant"),
        baseline="constant",
    ),
    Claim(
        _TD, "with the Q value they do not: rewards even fall", "fig2", "more", lambda arms: -_learns("Q value")(arms)
    ),
    Claim(f"{_TD}, Remark 1", "the TD error beats the Q value", "fig2", "more", _against("TD error", "Q value")),
    Claim(_GOSSIP, "10 rounds of gossip beat none", "fig5", "more", _against("10 rounds", "0 rounds")),
    Claim(_GOSSIP, "20 rounds beat 10", "fig5", "more", _against("20 rounds", "10 rounds")),
    Claim(
        "Theorem 5.10 (5)", "slow graph: 10 rounds beat none", "slow_graph", "more", _against("10 rounds", "0 rounds")
    ),
    Claim(
        "Theorem 5.10 (5)", "slow graph: 20 rounds beat 10", "slow_graph", "more", _against("20 rounds", "10 rounds")
    ),
    Claim(
        "Theorem 5.10 (5)", "slow graph: 200 rounds beat 20", "slow_graph", "more", _against("200 rounds", "20 rounds")
    ),
    Claim(
        "Theorem 5.10 (5)",
        "after 10 rounds disagreement is below (1 - η^(N-1))^10",
        "slow_graph",
        "more",
        _faster_than_bound("10 rounds"),
        "orders of magnitude",
    ),
    Claim(_WIDTH, "width matters little: m = 20 against 10", "fig6", "same", _against("m = 20", "m = 10")),
    Claim(_WIDTH, "width matters little: m = 40 against 20", "fig6", "same", _against("m = 40", "m = 20")),
    Claim(_DEPTH, "depth helps: D = 20 beats 5", "fig7", "more", _against("D = 20", "D = 5")),
    Claim(_DEPTH, "depth helps: D = 40 beats 20", "fig7", "more", _against("D = 40", "D = 20")),
    Claim("Figure 8", "regret grows with agents: N = 3 against 2", "fig8", "more", _regret("N = 3", "N = 2")),
    Claim("Figure 8", "regret grows with agents: N = 4 against 3", "fig8", "more", _regret("N = 4", "N = 3")),
    Claim(
        "(ours)",
        "... also as a share of the way to the best: N = 4 against 2",
        "fig8",
        "more",
        _regret("N = 4", "N = 2", share=True),
        "share of the way",
    ),
    Claim("Figure 9, Theorem 5.10 (4)", "five times the actor samples M help", "fig9", "more", _against(_MANY_M, _ONE)),
    Claim("Figure 9, Theorem 5.10 (7)", "five times the critic steps K help", "fig9", "more", _against(_MANY_K, _ONE)),
    Claim("(ours)", "... M also at equal samples", "fig9", "more", _against(f"{_MANY_M}, equal samples", _ONE)),
    Claim("(ours)", "... K also at equal samples", "fig9", "more", _against(f"{_MANY_K}, equal samples", _ONE)),
    Claim(
        "(ours)",
        "the actor's sign turned round (-δ) beats the printed δ",
        "signals",
        "more",
        _against("td_q", "td_q_literal"),
    ),
    Claim("(ours)", "a state-value critic beats the Q critic", "signals", "more", _against("td_v", "td_q")),
    *(
        Claim("Assumption 5.3", f"rewards r + 24 are as good as r: {name}", "offset", "same", _offset(name))
        for name in ("δ", "-δ", "Q, warm critic")
    ),
    Claim("Theorem 5.10 (1)", "with α/t the gap J* - J falls", "rate", "more", _rate("α / t"), "power of 1/t"),
    *(
        Claim(
            "Theorem 5.10 (1)",
            f"... at least as fast as 1/t, step sizes {arm}",
            "rate",
            "more",
            _as_fast(arm),
            "power of 1/t",
        )
        for arm in ("α / t", "α / 3t", "α / 10t")
    ),
    Claim("Table 1", "a deep critic beats a linear one", "critic", "more", _against("deep", "linear")),
    Claim(
        "Algorithm 3",
        "decentralised critics are as good as a centralised one",
        "centralised",
        "same",
        _against("decentralised", "centralised"),
    ),
    Claim(
        "Figure 5",
        "... and better than independent learners",
        "centralised",
        "more",
        _against("decentralised", "independent"),
    ),
)


def judge(results: Mapping[str, Mapping[str, Arms]]) -> list[Verdict]:
    """Every claim under every regime that has its experiment."""
    return [
        _verdict(claim, regime, experiments[claim.experiment])
        for claim in CLAIMS
        for regime, experiments in results.items()
        if claim.experiment in experiments
        and all(claim.baseline in result.arrays for result in experiments[claim.experiment].values())
    ]


def _verdict(claim: Claim, regime: str, arms: Arms) -> Verdict:
    mean, low, high = interval(claim.difference(arms))
    negligible = NEGLIGIBLE
    if claim.unit == "reward per step":
        first = next(iter(arms.values())).arrays
        negligible = NEGLIGIBLE * float((first["optimum"] - first["random"]).mean())
    word = verdict(claim.kind, low, high, negligible)
    return Verdict(
        claim.source, claim.statement, regime, claim.experiment, claim.unit, mean, low, high, negligible, word
    )


def verdict(kind: str, low: float, high: float, negligible: float) -> str:
    """holds, does not hold or undetermined, by the rules above."""
    within = -negligible <= low and high <= negligible
    if kind == "same":
        if within:
            return "holds"
        return "does not hold" if low > negligible or high < -negligible else "undetermined"
    if high < 0 or within:
        return "does not hold"
    return "holds" if low > 0 else "undetermined"
