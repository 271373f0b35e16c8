"""The paper's claims, each with a measured paired difference and a verdict.

A run's outcome, per seed, is its value averaged over the last fifth of its points. Two arms share their seeds'
landmarks, initial weights and noise, so their outcomes are compared seed by seed, with Student's 95% interval of the
mean difference.

Verdicts. `negligible` is 2% of the way from the random to the best policy.
    "more": the difference exceeds negligible (holds), or does not (does not hold).
    "same": the difference is within ±negligible (holds), or beyond it on one side (does not hold).
    Either verdict takes evidence: a paired two-sided t-test at 5% after Holm's correction over all claims tested in the
    regime. Without evidence for one of the two a claim is undetermined. Before the correction these are the verdicts of
    the 95% interval that lies wholly on one side. Claims that a regime's arms cannot decide are not tested.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.gridworld.study.experiments import AVERAGED, CONTROL
from rlhf_marl.gridworld.study.measure import decay
from rlhf_marl.gridworld.study.results import Result

Arms = Mapping[str, Result]
Difference = Callable[[Arms], np.ndarray | None]
NEGLIGIBLE, SIGNIFICANT, GOAL = 0.02, 0.05, 0.9
_ALIKE = 0.01  # consensus matrices that differ by less, in the mean over seeds, are the same to a study
_ONE, _MANY_M, _MANY_K = "K, M", "K, 5 M", "5 K, M"  # arms of Figure 9


@dataclass(frozen=True, slots=True)
class Claim:
    """difference: arms -> one number per seed, positive in the claimed direction; None if the arms do not test it."""

    source: str
    statement: str
    experiment: str
    kind: Literal["more", "same"]
    difference: Difference
    unit: str = "reward per step"


@dataclass(frozen=True, slots=True)
class Verdict:
    """p: Holm's, of the likelier of the two verdicts. Numbers are NaN if the claim was not tested."""

    source: str
    statement: str
    regime: str
    experiment: str
    unit: str
    mean: float
    low: float
    high: float
    negligible: float
    p: float
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return {key: None if value != value else value for key, value in asdict(self).items()}


def outcome(result: Result) -> np.ndarray:
    """Value over the last fifth of the points, (S,)."""
    return late(result.arrays["value"])


def late(curve: np.ndarray) -> np.ndarray:
    """Mean over the last fifth of the points: (S, P) -> (S,)."""
    return curve[:, -max(1, curve.shape[1] // 5) :].mean(1)


def _against(better: str, worse: str) -> Difference:
    """Not tested if the change left the whole curve as it was."""

    def difference(arms: Arms) -> np.ndarray | None:
        if np.array_equal(arms[better].arrays["value"], arms[worse].arrays["value"]):
            return None
        return outcome(arms[better]) - outcome(arms[worse])

    return difference


def _turned(difference: Difference) -> Difference:
    def turned(arms: Arms) -> np.ndarray | None:
        found = difference(arms)
        return None if found is None else -found

    return turned


def _over(arm: str, baseline: str) -> Difference:
    """Not tested without the baseline (see measure.py)."""

    def difference(arms: Arms) -> np.ndarray | None:
        arrays = arms[arm].arrays
        return outcome(arms[arm]) - arrays[baseline] if baseline in arrays else None

    return difference


def _rounds(more: str, fewer: str) -> Difference:
    """Not tested if the fewer rounds already give the consensus of the more."""

    def difference(arms: Arms) -> np.ndarray | None:
        powers = [arms[arm].arrays["power"] for arm in (more, fewer)]
        return None if _alike(*powers) else _against(more, fewer)(arms)

    return difference


def _as_averaged(gossip: str, averaged: str) -> Difference:
    """Gossiped critics against critics of the mean reward. With K = 1 and a gossip that averages they are the same by
    construction, as the TD step is linear in the reward: not tested."""

    def difference(arms: Arms) -> np.ndarray | None:
        setting, power = arms[gossip].setting, arms[gossip].arrays["power"]
        if setting.critic_steps == 1 and _alike(power, np.full_like(power, 1 / setting.n_agents)):
            return None
        return _against(gossip, averaged)(arms)

    return difference


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """(S, N, N) each."""
    return bool(np.abs(a - b).max((-2, -1)).mean() < _ALIKE)


def _regret(more: str, fewer: str, *, share: bool = False) -> Difference:
    """Gap from sampled reward to the best policy, more agents minus fewer. The sampled reward is comparable across
    numbers of agents. With `share`, relative to the distance from random policies to the best."""

    def gap(result: Result) -> np.ndarray:
        arrays = result.arrays
        found = arrays["optimum"] - late(arrays["reward"])
        return found / (arrays["optimum"] - arrays["random"]).mean() if share else found

    return lambda arms: gap(arms[more]) - gap(arms[fewer])


def _beyond(arm: str, share: float) -> Difference:
    """How far past a share of the way from random policies to the best."""

    def difference(arms: Arms) -> np.ndarray:
        arrays = arms[arm].arrays
        way = arrays["optimum"] - arrays["random"]
        return (outcome(arms[arm]) - arrays["random"] - share * way) / way.mean()

    return difference


def _rate(arm: str) -> Callable[[Arms], np.ndarray]:
    """Power of 1/t at which the gap to the best policy shrinks late in the run."""

    def values(arms: Arms) -> np.ndarray:
        arrays = arms[arm].arrays
        return decay(arrays["optimum"][:, None] - arrays["value"], arrays["points"])

    return values


def _as_fast(arm: str) -> Difference:
    return lambda arms: _rate(arm)(arms) - 1


def _offset(name: str) -> Difference:
    return _against(f"{name}, r + 24", f"{name}, r")


_TD, _GOSSIP, _WIDTH, _DEPTH = "Figure 2, 10", "Figure 5, Theorem 5.10 (5)", "Figure 6, Remark 5", "Figure 7, Remark 5"

_LOSSES: tuple[tuple[str, str, Literal["more", "same"], str, str], ...] = (
    ("(ours)", "an exact critic gets further than a learned one", "more", "exact critic", "sampled"),
    (
        "(ours)",
        "exact directions get further than samples with an exact critic",
        "more",
        "exact direction",
        "exact critic",
    ),
    ("Algorithm 3", "gossip is as good as averaging the rewards", "same", "sampled", "averaged rewards"),
)

CLAIMS = (
    Claim(_TD, "with the TD error agents learn: above the control's", "fig2", "more", _against("TD error", CONTROL)),
    Claim(_TD, "with the TD error agents beat random ones", "fig2", "more", _over("TD error", "random")),
    Claim(
        "(ours)",
        "with the TD error agents use the state: they beat the best constant action",
        "fig2",
        "more",
        _over("TD error", "constant"),
    ),
    Claim(
        _TD,
        "with the Q value they do not: below the control's",
        "fig2",
        "more",
        _turned(_against("Q value", CONTROL)),
    ),
    Claim("(ours)", f"the control, {CONTROL}, stays where it starts", "fig2", "same", _over(CONTROL, "start")),
    Claim(f"{_TD}, Remark 1", "the TD error beats the Q value", "fig2", "more", _against("TD error", "Q value")),
    Claim(_GOSSIP, "10 rounds of gossip beat none", "fig5", "more", _rounds("10 rounds", "0 rounds")),
    Claim(_GOSSIP, "20 rounds beat 10", "fig5", "more", _rounds("20 rounds", "10 rounds")),
    Claim(_GOSSIP, "fixed credit: 10 rounds beat none", "owned", "more", _rounds("10 rounds", "0 rounds")),
    Claim(_GOSSIP, "fixed credit: 20 rounds beat 10", "owned", "more", _rounds("20 rounds", "10 rounds")),
    Claim(
        "(ours)",
        "fixed credit: 10 rounds are as good as averaging the rewards",
        "owned",
        "same",
        _as_averaged("10 rounds", AVERAGED),
    ),
    Claim(
        "Theorem 5.10 (5)", "slow graph: 10 rounds beat none", "slow_graph", "more", _rounds("10 rounds", "0 rounds")
    ),
    Claim("Theorem 5.10 (5)", "slow graph: 20 rounds beat 10", "slow_graph", "more", _rounds("20 rounds", "10 rounds")),
    Claim(
        "Theorem 5.10 (5)", "slow graph: 200 rounds beat 20", "slow_graph", "more", _rounds("200 rounds", "20 rounds")
    ),
    Claim(
        "(ours)",
        "slow graph: 200 rounds are as good as averaging the rewards",
        "slow_graph",
        "same",
        _as_averaged("200 rounds", AVERAGED),
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
    *(
        Claim(
            "(ours)",
            f"ten times the steps: {name} reach {GOAL} of the way from random to best",
            "optimum",
            "more",
            _beyond(arm, GOAL),
            "share of the way",
        )
        for arm, name in (("larger K and M", "larger K and M"), ("actors gossiped", "with gossiped actors they"))
    ),
    Claim(
        "(ours)",
        "... gossiped actors learn: above the control's",
        "optimum",
        "more",
        _against("actors gossiped", CONTROL),
    ),
    Claim(
        "(ours)",
        "... larger K and M learn: above the control's",
        "optimum",
        "more",
        _against("larger K and M", CONTROL),
    ),
    Claim(
        "(ours)",
        "... gossiped actors get further than actors of their own",
        "optimum",
        "more",
        _against("actors gossiped", "larger K and M"),
    ),
    *(
        Claim(source, f"{statement}{suffix}", "losses", kind, _against(f"{better}{suffix}", f"{worse}{suffix}"))
        for source, statement, kind, better, worse in _LOSSES
        for suffix in ("", ", actors gossiped")
    ),
    Claim(
        "Algorithm 3",
        "decentralised critics are as good as a centralised one",
        "centralised",
        "same",
        _as_averaged("decentralised", "centralised"),
    ),
)


def judge(results: Mapping[str, Mapping[str, Arms]]) -> list[Verdict]:
    """Every claim under every regime that has its experiment; results are regime, experiment, arm."""
    return [
        verdict
        for regime, experiments in results.items()
        for verdict in _judge(regime, [claim for claim in CLAIMS if claim.experiment in experiments], experiments)
    ]


def _judge(regime: str, claims: Sequence[Claim], experiments: Mapping[str, Arms]) -> list[Verdict]:
    rows: list[tuple[Claim, tuple[float, float, float], float, float, float]] = []
    for claim in claims:
        arms = experiments[claim.experiment]
        difference = claim.difference(arms)
        margin, kind = _negligible(claim, arms), claim.kind
        if difference is None:
            rows.append((claim, (np.nan, np.nan, np.nan), margin, np.nan, np.nan))
        else:
            rows.append((claim, over_seeds(difference), margin, *p_values(kind, difference, margin)))
    adjusted = holm(np.array([min(p_for, p_against) for *_, p_for, p_against in rows]))
    return [
        Verdict(
            claim.source,
            claim.statement,
            regime,
            claim.experiment,
            claim.unit,
            *found,
            margin,
            float(p),
            _word(p, p_for, p_against),
        )
        for (claim, found, margin, p_for, p_against), p in zip(rows, adjusted, strict=True)
    ]


def _negligible(claim: Claim, arms: Arms) -> float:
    if claim.unit != "reward per step":
        return NEGLIGIBLE
    first = next(iter(arms.values())).arrays
    return NEGLIGIBLE * float((first["optimum"] - first["random"]).mean())


def p_values(kind: str, difference: np.ndarray, negligible: float) -> tuple[float, float]:
    """p of the claim's two verdicts, holds and does not hold, by the rules above. difference: (S,)."""
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / n**0.5

    def above(x: float) -> float:
        """Two-sided p of a mean above x."""
        if error == 0:
            return 0.0 if mean > x else 1.0
        return float(min(1, 2 * student.sf((mean - x) / error, n - 1)))

    def below(x: float) -> float:
        if error == 0:
            return 0.0 if mean < x else 1.0
        return float(min(1, 2 * student.cdf((mean - x) / error, n - 1)))

    if kind == "more":
        return above(negligible), below(negligible)
    return max(above(-negligible), below(negligible)), min(above(negligible), below(-negligible))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values; NaNs are no tests and stay."""
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]))
    return adjusted


def _word(p: float, p_for: float, p_against: float) -> str:
    if np.isnan(p):
        return "not tested"
    if p >= SIGNIFICANT:
        return "undetermined"
    return "holds" if p_for < p_against else "does not hold"
