"""Which runs a sweep consists of. An arm is a combination of values; each arm has a run per seed."""

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, final

from rlhf_marl.config import Config, check_config
from rlhf_marl.config.overrides import parse_value, set_key
from rlhf_marl.errors import UsageError
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.runs.directory import RunDirectory, check_same_config
from rlhf_marl.runs.validations import is_finished

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST_RUNS = 10_000
_LONGEST_NAME = 120  # characters of a folder's name


@final
@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a sweep.

    Attributes:
        arm: the arm's name, which is also its folder.
        values: the arm's values by key, without the seed.
    """

    arm: str
    values: Mapping[str, Any]
    seed: int
    path: Path
    config: Config

    @property
    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def parse_over(options: Sequence[str]) -> dict[str, list[Any]]:
    """`["seed=0..4", "topology.gossip_rounds=0,20"]` -> the values by key.

    Values are separated by commas outside brackets and quotes; a..b are the integers from a to b, both included.

    Raises:
        UsageError: not KEY=VALUES, or a key is given twice.
    """
    over: dict[str, list[Any]] = {}
    for option in options:
        key, given, text = option.partition("=")
        if not given or not key.strip(".") or not text.strip():
            raise UsageError(f"--over: {option!r} given; write KEY=VALUES, such as seed=0..4 or actor.signal=td_v,td_q")
        if key in over:
            raise UsageError(f"--over: {key} is given twice; list all its values after one --over {key}=")
        over[key] = [value for item in _items(text) for value in _expanded(item, key)]
    return over


def _items(text: str) -> list[str]:
    """Split at commas that are outside brackets and quotes."""
    items, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            items.append("")
        else:
            items[-1] += character
    return [item.strip() for item in items]


def _expanded(item: str, key: str) -> list[Any]:
    if not item:
        raise UsageError(f"--over: {key}: an empty value given; separate values by single commas")
    if found := _RANGE.fullmatch(item):
        first, last = map(int, found.groups())
        if last < first or last - first >= _MOST_RUNS:
            raise UsageError(f"--over: {key}: {item} given; a range runs upwards and has at most {_MOST_RUNS:,} values")
        return list(range(first, last + 1))
    return [parse_value(item)]


def plan(content: Mapping[str, Any], where: str, over: Mapping[str, Sequence[Any]], out: Path) -> list[Planned]:
    """Every combination as a checked run, arm by arm; the first arm is the reference.

    Args:
        content: plain data of the config that all runs share.
        over: values by dotted key; `seed` is replicated within each arm.

    Raises:
        UsageError: a combination is not a valid config, a value is given twice, there are too many runs, or a run
            directory in `out` holds a run of another config.
    """
    if not over:
        raise UsageError("--over: missing; give at least one, such as --over seed=0..4")
    for key, values in over.items():
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"--over: {key}: {value!r} is given twice")
    keys = [key for key in over if key != "seed"]
    seeds = list(over.get("seed", [None]))
    combinations = list(product(*(over[key] for key in keys)))
    if len(combinations) * len(seeds) > _MOST_RUNS:
        raise UsageError(f"--over: {len(combinations) * len(seeds):,} runs; at most {_MOST_RUNS:,} are allowed")
    arms = {}
    for combination in combinations:
        chosen = dict(zip(keys, combination, strict=True))
        arms[arm_name(chosen)] = chosen
    return plan_arms(content, where, arms, seeds, out)


def plan_arms(
    content: Mapping[str, Any],
    where: str,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int | None],
    out: Path,
) -> list[Planned]:
    """One run per arm and seed, in out/<arm>/<seed>; raises UsageError as `plan` does.

    Args:
        arms: values by dotted key, by the arm's name, which must be usable as a folder's name.
        seeds: None: the config's own.
    """
    runs = []
    for arm, values in arms.items():
        for seed in seeds:
            chosen = dict(values) if seed is None else {**values, "seed": seed}
            data = copy.deepcopy(dict(content))
            for key, value in chosen.items():
                set_key(data, key, value)
            config = check_config(data, f"{where} with {_described(chosen)}" if chosen else where)
            runs.append(Planned(arm, values, config.seed, out / arm / str(config.seed), config))
    for run in runs:
        _check_same(run)
    return runs


def arm_name(values: Mapping[str, Any]) -> str:
    """The folder of an arm: its keys and values where they are short and plain, else with a digest."""
    name = ",".join(f"{key}={_text(value)}" for key, value in values.items()) or "default"
    plain = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)
    if plain == name and len(name) <= _LONGEST_NAME:
        return name
    return f"{plain[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {_text(value)}" for key, value in values.items())


def _check_same(run: Planned) -> None:
    """Raise UsageError if the run's folder holds a run of another config."""
    if not (run.path / "config.yaml").is_file():
        if run.path.exists():
            RunDirectory.check_free(run.path)
        return
    _, before = RunDirectory.open(run.path, "sweep")
    try:
        check_same_config(before.model_dump(mode="json"), run.config, f"{run.path} was started")
    except UsageError as error:
        reason = str(error).removeprefix("--resume: ").removesuffix("; use a new run")
        raise UsageError(f"sweep: {reason}; choose another --out") from None


def finished(run: Planned) -> bool:
    """Whether all of the run's iterations are recorded, or it ended early, and its results are written."""
    try:
        rows = read_jsonl(run.path / "metrics.jsonl")
    except FileNotFoundError:
        return False
    return bool(rows) and is_finished(run.path, rows[-1]["iteration"] + 1, run.config.iterations)
