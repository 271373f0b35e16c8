"""A run's validations: what a checkpoint remembers of each, the early stop, and the lines of validation.jsonl.

A line (N agents; scores are scaled means over questions, each the mean over its turns):
    {"iteration": finished iterations, "questions": n, "team": mean over judges of the team's answers,
     "agents": [N means over judges], "judges": {name: {"team": mean, "agents": [N]}}, "training_reward": mean scaled
     reward of the agents in the iterations since the previous validation, or null before training,
     "early_stop": why training ended here, or null}
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rlhf_marl.errors import UsageError
from rlhf_marl.files.iterations import iteration_name, newest_checkpoint
from rlhf_marl.files.jsonl import read_jsonl


@final
@dataclass(frozen=True, slots=True)
class Validated:
    """One validation.

    Attributes:
        iteration: finished iterations.
        team: mean over judges and questions of the team's answers.
        reward: mean training reward in the iterations since the previous validation; 0 before training.
        ended: whether it ended training early.
    """

    iteration: int
    team: float
    reward: float
    ended: bool = False

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Validated":
        """From plain data with these keys; raises KeyError, TypeError or ValueError if it is damaged."""
        found = cls(row["iteration"], row["team"], row["reward"], row.get("ended", True))  # earlier ones lack it
        if not all(isinstance(number, float) and math.isfinite(number) for number in (found.team, found.reward)):
            raise ValueError("a validation's scores are not finite numbers")
        return found


def best_of(validations: Sequence[Validated]) -> int:
    """Index of the validation with the highest team mean, the earliest of ties."""
    return max(range(len(validations)), key=lambda place: validations[place].team)


def early_stop(validations: Sequence[Validated], patience: int | None) -> str | None:
    """Why training ends early, in one sentence; None if it goes on.

    It ends if the last `patience` validations brought no new best, and the training reward since the previous
    validation is higher than that before the best one (if the best is the start: than the first one measured).
    """
    if patience is None or len(validations) <= patience:
        return None
    place = best_of(validations)
    best, last, since = validations[place], validations[-1], len(validations) - 1 - place
    rewarded = validations[max(place, 1)]
    if since < patience or last.reward <= rewarded.reward:
        return None
    return (
        f"training ended early after {last.iteration} iterations: the training reward rose from {rewarded.reward:+.3f} "
        f"to {last.reward:+.3f}, but the team's answers to the held-out questions did not improve in the last {since} "
        f"validations (best {best.team:+.3f} after {best.iteration} iterations, now {last.team:+.3f})"
    )


def ended_early(rows: Sequence[dict[str, Any]], iterations: int) -> str | None:
    """Why a run of so many finished iterations ended early; None if it did not. rows: of validation.jsonl."""
    return rows[-1]["early_stop"] if rows and rows[-1]["iteration"] == iterations else None


def is_finished(path: Path, done: int, iterations: int) -> bool:
    """Whether the training in a run directory, with `done` of `iterations` iterations recorded, ended by itself, and
    wrote its results.

    A damaged validation.jsonl counts as none.
    """
    newest = newest_checkpoint(path)  # a user may have removed them all
    if not (path / "best").is_dir() or (newest is not None and newest.name != iteration_name(done)):
        return False
    if done >= iterations:
        return True
    try:
        return ended_early(read_jsonl(path / "validation.jsonl"), done) is not None
    except (OSError, UsageError, KeyError):
        return False


def held_out_curve(rows: Sequence[dict[str, Any]]) -> str:
    """The team's answers to the held-out questions at the start, the best and the end. rows: at least one."""
    best = max(rows, key=lambda row: row["team"])
    first, last = rows[0], rows[-1]
    return (
        f"Held-out questions, mean of judges that train nobody: team {first['team']:+.3f} after {first['iteration']} "
        f"iterations, best {best['team']:+.3f} after {best['iteration']}, last {last['team']:+.3f} after "
        f"{last['iteration']}."
    )
