"""Run directories of a sweep -> the numbers of sweep.json.

Every number is a mean over seeds with Student's 95% interval: {"mean", "low", "high", "n"}; low and high are null for
fewer than two seeds. A speaker is an agent or the team, whose reward is the mean over agents.

{"version": 1, "config": text, "over": {key: [values]}, "reference": name of the first arm,
 "arms": [{"name", "values": {key: value},
           "runs": [{"seed", "folder", "state": "finished" or "failed", "reason": text or null}],
           "speakers": [{"name", "reward_model", "reward": N, "change": N, "held_out": N or null,
                         "verdicts": {sentence: number of runs}}],
           "curves": [{"name", "update": [...], "mean": [...], "low": [...], "high": [...]}]}],
 "differences": [{"arm", "speaker", "reward": N or null, "held_out": N or null, "note": text or null}]}

reward: mean scaled reward over the last fifth of the updates; change: minus that over the first fifth; held_out: mean
of the held-out judges, trained minus base; differences: of the arm minus the reference, paired by seed.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import NUMBERS, is_current, read_numbers
from rlhf_marl.evaluation.statistics import over_seeds
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.metrics import first_and_last_fifth
from rlhf_marl.sweeps.grid import Planned, finished

VERSION = 1
_WINDOW = 5  # updates of a curve's moving average, as in reports
_MOST_POINTS = 200  # of a curve
Numbers = dict[str, Any]
_log = logging.getLogger("rlhf_marl")


@final
@dataclass(frozen=True, slots=True)
class Result:
    """One finished run's numbers.

    Attributes:
        models: the agents' reward models by name; cards: their whole cards, which must be equal to be compared.
        rewards: mean scaled reward, (speakers, updates); the last speaker is the team. Updates that lack an agent's
            line are left out.
        held_out: per speaker, trained minus base by the held-out judges, if evaluated; verdicts: per speaker.
        judges: the held-out judges and questions of the evaluation, which must be equal to be compared.
    """

    models: Sequence[str]
    cards: Sequence[Any]
    rewards: np.ndarray
    held_out: Sequence[float | None] | None
    verdicts: Sequence[str]
    judges: Any


def read_result(path: Path) -> Result:
    """Read a finished run. Raises UsageError if a file is damaged."""
    rows = read_jsonl(path / "metrics.jsonl")
    models = [name for _, name in sorted({row["agent"]: row["reward_model"] for row in rows}.items())]
    updates: dict[int, dict[int, float]] = {}
    for row in rows:
        updates.setdefault(row["update"], {})[row["agent"]] = row["reward_scaled"]
    whole = [rewards for rewards in updates.values() if len(rewards) == len(models)]
    if not whole:
        raise UsageError(f"{path / 'metrics.jsonl'}: no update has the rewards of all {len(models)} agents")
    if len(whole) < len(updates):
        _log.warning(
            "%s: %d of %d updates lack an agent's reward and are left out of the sweep's numbers",
            *(path / "metrics.jsonl", len(updates) - len(whole), len(updates)),
        )
    by_agent = np.array([[rewards[agent] for rewards in whole] for agent in sorted(whole[0])])
    held_out, verdicts, judges = None, [], None
    try:
        _, numbers = read_numbers(path / NUMBERS)
    except (FileNotFoundError, UsageError):  # damaged, or of another version
        numbers = None
    if numbers is not None and is_current(numbers["settings"], path):
        speakers = [*numbers["agents"], numbers["team"]]
        held_out = [None if (m := speaker["held_out_reward"]) is None else m["difference"] for speaker in speakers]
        verdicts = [speaker["verdict"] for speaker in speakers]
        settings = numbers["settings"]
        cards = {name: settings["judges"].get(name) for name in numbers["held_out_judges"]}
        judges = (cards, settings["questions_sha256"], settings["turns"])
    return Result(
        models=models,
        cards=[card.model_dump(mode="json") for card in RunDirectory(path).cards()],
        rewards=np.vstack([by_agent, by_agent.mean(0)]),
        held_out=held_out,
        verdicts=verdicts,
        judges=judges,
    )


def summarise(
    runs: Sequence[Planned], failures: Mapping[str, str], out: Path, *, config: str, over: Mapping[str, Any]
) -> Numbers:
    """The content of sweep.json; runs that are not finished are left out of the numbers.

    Raises:
        UsageError: a finished run's files are damaged.
    """
    arms: dict[str, list[Planned]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    results = {
        arm: {run.seed: read_result(run.path) for run in of_arm if finished(run)} for arm, of_arm in arms.items()
    }
    reference = next(iter(arms))
    return {
        "version": VERSION,
        "config": config,
        "over": {key: list(values) for key, values in over.items()},
        "reference": reference,
        "arms": [
            {
                "name": arm,
                "values": dict(of_arm[0].values),
                "runs": [_run(run, run.seed in results[arm], failures, out) for run in of_arm],
                **_arm(list(results[arm].values())),
            }
            for arm, of_arm in arms.items()
        ],
        "differences": [row for arm in list(arms)[1:] for row in _differences(arm, results[reference], results[arm])],
    }


def _run(run: Planned, is_finished: bool, failures: Mapping[str, str], out: Path) -> Numbers:
    done = is_finished and run.name not in failures
    reason = None if done else failures.get(run.name, "not finished")
    folder = run.path.relative_to(out).as_posix()
    return {"seed": run.seed, "folder": folder, "state": "finished" if done else "failed", "reason": reason}


def _arm(results: Sequence[Result]) -> Numbers:
    if not results:
        return {"speakers": [], "curves": []}
    names = speaker_names(len(results[0].models))
    return {
        "speakers": [
            {
                "name": name,
                "reward_model": results[0].models[i] if i < len(results[0].models) else None,
                "reward": _interval(_last(result, i) for result in results),
                "change": _interval(_last(result, i) - _first(result, i) for result in results),
                "held_out": _interval(_held_out(result, i) for result in results if _held_out(result, i) is not None),
                "verdicts": dict(Counter(result.verdicts[i] for result in results if result.verdicts)),
            }
            for i, name in enumerate(names)
        ],
        "curves": [{"name": name, **_curve([result.rewards[i] for result in results])} for i, name in enumerate(names)],
    }


def speaker_names(n_agents: int) -> list[str]:
    """agent 0, agent 1, ..., team."""
    return [*(f"agent {i}" for i in range(n_agents)), "team"]


def _first(result: Result, speaker: int) -> float:
    return first_and_last_fifth(result.rewards[speaker].tolist())[0]


def _last(result: Result, speaker: int) -> float:
    return first_and_last_fifth(result.rewards[speaker].tolist())[1]


def _held_out(result: Result, speaker: int) -> float | None:
    return None if result.held_out is None else result.held_out[speaker]


def _differences(arm: str, reference: Mapping[int, Result], results: Mapping[int, Result]) -> Iterable[Numbers]:
    """Paired by seed: one row per speaker."""
    seeds = [seed for seed in reference if seed in results]
    if not seeds:
        return
    pairs = [(reference[seed], results[seed]) for seed in seeds]
    if len({len(result.models) for pair in pairs for result in pair}) > 1:
        yield {"arm": arm, "speaker": "team", "reward": None, "held_out": None, "note": "other numbers of agents"}
        return
    n_agents = len(pairs[0][0].models)
    for i, name in enumerate(speaker_names(n_agents)):
        compared = range(n_agents) if i == n_agents else [i]
        same = all(first.cards[k] == second.cards[k] for first, second in pairs for k in compared)
        judged = [(first, second) for first, second in pairs if None not in (_held_out(first, i), _held_out(second, i))]
        same_judges = all(first.judges == second.judges for first, second in judged)
        notes = [] if same else ["other reward models, so rewards are not compared"]
        notes += [] if same_judges else ["other judges or questions, so evaluations are not compared"]
        yield {
            "arm": arm,
            "speaker": name,
            "reward": _paired(pairs, _last, i) if same else None,
            "held_out": _paired(judged, _held_out, i) if same_judges else None,
            "note": "; ".join(notes) or None,
        }


def _paired(pairs: Sequence[tuple[Result, Result]], of: Callable[[Result, int], Any], speaker: int) -> Numbers | None:
    return _interval(of(second, speaker) - of(first, speaker) for first, second in pairs)


def _interval(values: Iterable[float | None]) -> Numbers | None:
    known = np.array(list(values), dtype=float)
    if len(known) == 0:
        return None
    mean, low, high = over_seeds(known)
    return {"mean": _number(mean), "low": _number(low), "high": _number(high), "n": len(known)}


def _curve(rows: Sequence[np.ndarray]) -> Numbers:
    """Moving averages of the updates that all runs have: mean and interval over seeds, thinned evenly."""
    length = min(len(row) for row in rows)
    smooth = np.array([[row[max(0, k - _WINDOW + 1) : k + 1].mean() for k in range(length)] for row in rows])
    kept = np.unique(np.linspace(0, length - 1, min(length, _MOST_POINTS)).round().astype(int))
    mean, low, high = np.array([over_seeds(smooth[:, k]) for k in kept]).T
    return {
        "update": (kept + 1).tolist(),
        "mean": [_number(value) for value in mean],
        "low": [_number(value) for value in low],
        "high": [_number(value) for value in high],
    }


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
