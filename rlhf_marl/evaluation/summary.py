"""Summarise the rows of evaluation_dialogues.jsonl into evaluation.json. Pure functions, no model.

A speaker is an agent, 0 to N - 1, or TEAM. Each value is first averaged over a question's turns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_marl.evaluation.metrics import agreement, distinct, self_repetition
from rlhf_marl.evaluation.questions import KINDS
from rlhf_marl.evaluation.statistics import Metric, interval, paired
from rlhf_marl.evaluation.verdict import verdict

Row = dict[str, Any]
Value = Callable[[Row], float]
_HARMLESS = tuple(kind for kind in KINDS if kind != "harmful")
TEAM = -1
_OF_TEAM = {
    "responses": "aggregate",
    "tokens": "aggregate_tokens",
    "refused": "aggregate_refused",
}


def summarise(rows: Sequence[Row], own: Sequence[str], judges: Sequence[dict[str, Any]], pairwise: str | None) -> Row:
    """The measurements in evaluation.json; see schema.Summary.

    Args:
        rows: of both policies.
        own: name of each agent's own reward model among the judges.
        judges: {"name", "trained_agents"} in the order of the matrix.
        pairwise: name of the chat judge that compared pairs; None if the held-out judges decide the win rate.
    """
    n_agents = len(own)
    scales = {judge["name"]: _scale(rows, judge["name"]) for judge in judges if not judge["trained_agents"]}
    held_out = [name for name, (_, deviation) in scales.items() if deviation > 0]
    ensemble = standardised(scales)
    agents = []
    for agent, name in enumerate(own):
        numbers = {
            "own_reward": metric(rows, score_of(name, agent)),
            **_of_speaker(rows, agent, ensemble, held_out, pairwise),
            "kl_to_base": _mean(rows, value_of("kl", agent)),
            "entropy": metric(rows, value_of("entropy", agent)),
            "truncated": metric(rows, value_of("truncated", agent)),
        }
        agents.append({"agent": agent, "reward_model": name, "verdict": verdict(numbers), **numbers})
    team = {
        "own_reward": metric(rows, lambda row: float(np.mean([row["aggregate_scores"][name] for name in own]))),
        **_of_speaker(rows, TEAM, ensemble, held_out, pairwise),
        "against_single": {
            "own_reward": metric(
                rows, _team_or_single(n_agents, lambda row, i: float(np.mean([score_of(n, i)(row) for n in own])))
            ),
            "held_out_reward": metric(rows, _team_or_single(n_agents, ensemble)) if ensemble else None,
        },
    }
    return {
        "agents": agents,
        "team": team | {"verdict": verdict(team)},
        "held_out_judges": held_out,
        "cross_rewards": _cross_rewards(rows, n_agents, judges),
        "agreement": metric(rows, lambda row: agreement(row["responses"])) if n_agents > 1 else None,
        "controller_fallbacks": metric(rows, lambda row: float(row["fallbacks"])),
        "by_kind": {kind: _of_kind(rows, kind, own) for kind in KINDS if any(row["kind"] == kind for row in rows)},
    }


def metric(rows: Sequence[Row], value: Value, kinds: Sequence[str] = KINDS) -> Metric | None:
    """Base, trained and paired difference of a value per row; None without questions of these kinds."""
    base, trained = (per_question(rows, policy, value, kinds) for policy in ("base", "trained"))
    both = [question for question in base if question in trained]
    return paired([base[question] for question in both], [trained[question] for question in both])


def per_question(rows: Sequence[Row], policy: str, value: Value, kinds: Sequence[str] = KINDS) -> dict[str, float]:
    """Mean over the turns of each question, for one policy."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["policy"] == policy and row["kind"] in kinds:
            values.setdefault(row["question"], []).append(float(value(row)))
    return {question: float(np.mean(found)) for question, found in values.items()}


def speaker_value(row: Row, key: str, speaker: int) -> Any:
    """A row's value under `key`, for an agent or the team."""
    return row[_OF_TEAM[key]] if speaker == TEAM else row[key][speaker]


def value_of(key: str, speaker: int) -> Value:
    """`speaker_value` as a function of the row."""
    return lambda row: speaker_value(row, key, speaker)


def score_of(judge: str, speaker: int) -> Value:
    """A judge's scaled score of an agent's or the team's answer, as a function of the row."""
    return lambda row: row["aggregate_scores"][judge] if speaker == TEAM else row["scores"][judge][speaker]


def _scale(rows: Sequence[Row], judge: str) -> tuple[float, float]:
    """Mean and standard deviation of a judge's scores of base answers."""
    base = [row for row in rows if row["policy"] == "base"]
    scores = [score for row in base for score in (*row["scores"][judge], row["aggregate_scores"][judge])]
    return float(np.mean(scores)), float(np.std(scores)) if np.ptp(scores) > 0 else 0.0


def standardised(scales: Mapping[str, tuple[float, float]]) -> Callable[[Row, int], float] | None:
    """Ensemble of judges: the mean of their scores, each standardised by its scores of base answers.

    Judges that score all base answers alike are excluded; None if no judge is left.
    """
    used = [(name, mean, deviation) for name, (mean, deviation) in scales.items() if deviation > 0]
    if not used:
        return None

    def ensemble(row: Row, speaker: int) -> float:
        return float(np.mean([(score_of(name, speaker)(row) - mean) / deviation for name, mean, deviation in used]))

    return ensemble


def _team_or_single(n_agents: int, value: Callable[[Row, int], float]) -> Value:
    """The team's value on trained rows; on base rows the mean over agents, the value of a single base answer."""

    def of(row: Row) -> float:
        if row["policy"] == "trained":
            return value(row, TEAM)
        return float(np.mean([value(row, agent) for agent in range(n_agents)]))

    return of


def _of_speaker(
    rows: Sequence[Row],
    speaker: int,
    ensemble: Callable[[Row, int], float] | None,
    held_out: Sequence[str],
    pairwise: str | None,
) -> dict[str, Any]:
    """The metrics that agents and team share."""
    repetition = _repetition(rows, speaker)
    return {
        "held_out_reward": metric(rows, lambda row: ensemble(row, speaker)) if ensemble else None,
        "win_rate": _win_rate(rows, speaker, ensemble, held_out, pairwise),
        "distinct_1": metric(rows, lambda row: distinct(speaker_value(row, "responses", speaker), 1)),
        "self_repetition": metric(rows, lambda row: repetition[row["policy"], row["question"], row["turn"]]),
        **text_metrics(rows, speaker),
    }


def text_metrics(rows: Sequence[Row], speaker: int) -> dict[str, Any]:
    """The metrics of a speaker's texts that are also used to compare two runs."""
    refused = value_of("refused", speaker)
    return {
        "length": metric(rows, value_of("tokens", speaker)),
        "distinct_2": metric(rows, lambda row: distinct(speaker_value(row, "responses", speaker), 2)),
        "refusal_harmful": metric(rows, refused, ("harmful",)),
        "refusal_harmless": metric(rows, refused, _HARMLESS),
    }


def _repetition(rows: Sequence[Row], speaker: int) -> dict[tuple[str, str, int], float]:
    """Self-repetition of a speaker's answers under (policy, question, turn)."""
    result = {}
    for policy in ("base", "trained"):
        dialogues: dict[str, list[Row]] = {}
        for row in rows:
            if row["policy"] == policy:
                dialogues.setdefault(row["question"], []).append(row)
        shares = self_repetition(
            [[speaker_value(r, "responses", speaker) for r in turns] for turns in dialogues.values()]
        )
        for turns, found in zip(dialogues.values(), shares, strict=True):
            result.update({(policy, r["question"], r["turn"]): share for r, share in zip(turns, found, strict=True)})
    return result


def _win_rate(
    rows: Sequence[Row],
    speaker: int,
    ensemble: Callable[[Row, int], float] | None,
    held_out: Sequence[str],
    pairwise: str | None,
) -> dict[str, Any] | None:
    """How often the trained answer beats the base model's; ties count half."""
    consistent = None
    if pairwise is not None:
        judged = [row for row in rows if "preferred" in row]
        wins = per_question(judged, "trained", lambda row: row["preferred"][speaker])
        consistent = float(np.mean([row["consistent"][speaker] for row in judged])) if judged else None
    elif ensemble is not None:
        before = {(row["question"], row["turn"]): row for row in rows if row["policy"] == "base"}

        def win(row: Row) -> float:
            difference = ensemble(row, speaker) - ensemble(before[row["question"], row["turn"]], speaker)
            return (float(np.sign(difference)) + 1) / 2

        wins = per_question(rows, "trained", win)
    else:
        return None
    if not wins:
        return None
    low, high = interval(list(wins.values()))
    return {
        "rate": float(np.mean(list(wins.values()))),
        "low": low,
        "high": high,
        "n": len(wins),
        "position_consistent": consistent,
        "judge": pairwise or f"mean of {', '.join(held_out)}",
    }


def _mean(rows: Sequence[Row], value: Value) -> dict[str, float | None]:
    """Mean of the trained policy with its interval."""
    values = list(per_question(rows, "trained", value).values())
    low, high = interval(values)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def _cross_rewards(rows: Sequence[Row], n_agents: int, judges: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of every judge on every speaker."""
    speakers = (*range(n_agents), TEAM)
    cells = [[metric(rows, score_of(judge["name"], speaker)) for judge in judges] for speaker in speakers]
    return {
        "judges": list(judges),
        "rows": [*(f"agent {agent}" for agent in range(n_agents)), "team"],
        **{
            key: [[cell[key] if cell else None for cell in row] for row in cells]
            for key in ("base", "trained", "difference", "low", "high")
        },
    }


def _of_kind(rows: Sequence[Row], kind: str, own: Sequence[str]) -> dict[str, Any]:
    """Metrics of one kind of question, one per agent."""
    agents = range(len(own))
    return {
        "n": len({row["question"] for row in rows if row["kind"] == kind}),
        "own_reward": [metric(rows, score_of(own[agent], agent), (kind,)) for agent in agents],
        "refusal": [metric(rows, value_of("refused", agent), (kind,)) for agent in agents],
    }
