"""Which of a run's two sets of adapters is used: the best by held-out judges, or the last. No torch import."""

import json
from pathlib import Path
from typing import Literal

from rlhf_marl.config import Config
from rlhf_marl.files.iterations import iteration_of, newest_checkpoint

Choice = Literal["best", "last"]
FOLDERS: dict[Choice, str] = {"best": "best", "last": "adapters"}


def choice(path: Path, config: Config, asked: Choice | None) -> Choice:
    """The set that was asked for; by default the best if held-out judges chose it and the run has it, else the last."""
    if asked is not None:
        return asked
    chosen = config.best_metric == "held_out" and (best_name(path) is not None or (path / "best").is_dir())
    return "best" if chosen else "last"


def best_name(path: Path) -> str | None:
    """Name of the best checkpoint's folder; None if there is none or its record is damaged."""
    try:
        name = json.loads((path / "checkpoints" / "best.json").read_text("utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and iteration_of(name) is not None else None


def checkpoint_of(path: Path, which: Choice) -> Path | None:
    """The folder of the checkpoint that holds the set, which may be damaged; None if there is none."""
    if which == "last":
        return newest_checkpoint(path)
    name = best_name(path)
    return None if name is None or not (path / "checkpoints" / name).is_dir() else path / "checkpoints" / name


def in_words(path: Path, config: Config, which: Choice) -> str:
    """`the best adapters by held_out, after 10 of 40 iterations`."""
    if which == "last":
        return "the last adapters"
    name = best_name(path)
    after = "" if name is None else f", after {iteration_of(name)} of {config.iterations} iterations"
    return f"the best adapters by {config.best_metric}{after}"
