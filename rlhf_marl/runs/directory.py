"""The run directory: all output of a run, readable at any time, resumable from its newest checkpoint.

config.yaml        the resolved config           environment.json   versions, hardware, seed
metrics.jsonl      a line per update and agent   dialogues.jsonl    a line per turn of each dialogue
validation.jsonl   a line per validation         judges.json        the validation's reward cards
checkpoints/       the newest and the best; see checkpoints.py
answers/           service answers since the oldest kept checkpoint; see journal.py
adapters/agent_0/  PEFT format                   critics.safetensors
best/agent_0/      the same, of the best checkpoint
topology.json      the consensus matrix          report.html        the report
train.log          what training printed
"""

import json
import logging
import os
import platform
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rlhf_marl.config import Config, check_config, dump_config
from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import FULL, flush, locked, or_stop, unwritable, write_text
from rlhf_marl.files.json_files import read_json
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.rewards import Card, check_card
from rlhf_marl.runs.checkpoints import Checkpoints, State

_PACKAGES = ("rlhf-marl", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy")
_OF_A_SERVICE = {
    "url",
    "base_url",
    "timeout",
    "max_retries",
    "api_key_env",
}  # a service may move or slow down
_MEMBER = re.compile(r"(?<=\.)members\.\d+\.card\.")  # in the key of a member's card
_MAY_CHANGE_ON_RESUME = {
    "validation.patience",
    "iterations",
    "checkpoint_every",
    "keep_checkpoints",
    "stop_after_skipped",
    "tracker",
}
_MAY_CHANGE_ON_RESUME |= {f"controller.{key}" for key in _OF_A_SERVICE}
_MAY_CHANGE_ON_RESUME |= {f"runtime.{key}" for key in ("address", "gpus_per_worker", "round_timeout", "lost")}
_BEGINNING = {"checkpoints", "environment.json", "metrics.jsonl", "dialogues.jsonl", "reward_models.json", ".lock"}
_BEGINNING |= {"judges.json", "environment.json.tmp", "reward_models.json.tmp", "judges.json.tmp", "config.yaml.tmp"}
_log = logging.getLogger("rlhf_marl")
Rows = list[dict[str, Any]]


@final
class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.dialogues = path / "dialogues.jsonl"
        self.validation = path / "validation.jsonl"  # absent without a validation section
        self.adapters = path / "adapters"
        self.best = path / "best"
        self.log = path / "train.log"
        self.critics = path / "critics.safetensors"
        self.checkpoints = Checkpoints(path / "checkpoints")
        self._reward_models = path / "reward_models.json"
        self._judges = path / "judges.json"
        self._environment = path / "environment.json"

    @classmethod
    def create(cls, path: Path, config: Config, cards: Sequence[Card], judges: Sequence[Card] = ()) -> "RunDirectory":
        """Start a new run.

        cards: the agents' reward models. judges: the validation's.

        Raises:
            UsageError: the path is taken or cannot be created. RunStopped: the disk is full.
        """
        cls.check_free(path)
        run = cls(path)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            flush(path.parent)
            with run.locked():
                cls.check_free(path)  # again, with the lock held
                write_text(run._environment, json.dumps(_environment(config), indent=2) + "\n")
                write_text(run._reward_models, _dump_cards(cards))
                if judges:
                    write_text(run._judges, _dump_cards(judges))
                run.metrics.touch()
                run.dialogues.touch()
                dump_config(config, path / "config.yaml")  # last: it marks the run directory as complete
        except OSError as error:
            if error.errno in FULL:
                raise unwritable(path, error, "start again") from None
            raise UsageError(f"--run-dir: {str(path)!r} cannot be created: {error.strerror}") from None
        return run

    def save_topology(self, matrix: Tensor) -> None:
        """Write the consensus matrix (N, N) as JSON."""
        file = self.path / "topology.json"
        with or_stop(file):
            write_text(file, json.dumps({"matrix": matrix.tolist()}) + "\n")

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise UsageError if a new run cannot start here; files of a run killed during creation are ignored."""
        if path.is_dir() and {p.name for p in path.iterdir()} <= _BEGINNING:
            return
        if path.exists():
            raise UsageError(f"--run-dir: {str(path)!r} already exists; add --resume to continue it, or choose another")

    @classmethod
    def open(cls, path: Path, where: str = "run directory") -> tuple["RunDirectory", Config]:
        """An existing run and its config; raises UsageError if it is not a run or its config is invalid."""
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{where}: {str(path)!r} is not a run directory: it has no config.yaml")
        return cls(path), check_config(load_yaml(path / "config.yaml"), str(path / "config.yaml"))

    @classmethod
    def resume(cls, path: Path, config: Config) -> "RunDirectory":
        """An existing run, if its config agrees with this one.

        Raises:
            UsageError: not a run, locked by another process, or the config differs in a key that may not change; names
                the first difference.
        """
        run, before = cls.open(path, "--resume")
        check_same_config(before.model_dump(mode="json"), config, f"{path} was started")
        run._warn_of_another_machine(config)
        with run.locked():  # raises before minutes of loading
            return run

    def adopt(self, config: Config, cards: Sequence[Card]) -> None:
        """Persist settings changed on resume. Call with the lock held, after all checks.

        Raises:
            RunStopped: writing failed.
        """
        with or_stop(self.path):
            if RunDirectory.open(self.path)[1] != config:
                dump_config(config, self.path / "config.yaml")
            if not self._reward_models.is_file() or self._reward_models.read_text("utf-8") != _dump_cards(cards):
                write_text(self._reward_models, _dump_cards(cards))

    def _warn_of_another_machine(self, config: Config) -> None:
        """Warn of changed software, device or threads: they change the last digits of results."""
        try:
            before = json.loads(self._environment.read_text("utf-8"))
            differences = list(_differences(before, _environment(config)))
        except (OSError, ValueError, RecursionError) as error:
            _log.warning(
                "%s cannot be read (%s), so it is unknown whether software and machine are the same",
                *(self._environment, error),
            )
            return
        for key, was, now in differences:
            if key.split(".")[0] in ("python", "packages", "device", "threads"):
                _log.warning("the run began with %s %s, now it is %s: the last digits will differ", key, was, now)

    def cards(self) -> list[Card]:
        """The reward models that the run trains with; raises UsageError if their file is missing or damaged."""
        return _read_cards(self._reward_models)

    def check_cards(self, cards: Sequence[Card], judges: Sequence[Card] = ()) -> None:
        """Raise UsageError if a reward card has changed since the run began; addresses of services may change.

        cards: the agents' reward models. judges: the validation's.
        """
        self._check_cards(self._reward_models, "reward model", cards)
        if judges:
            self._check_cards(self._judges, "judge", judges)

    def _check_cards(self, file: Path, what: str, cards: Sequence[Card]) -> None:
        if not file.exists():
            _log.warning("%s is missing: the %ss may differ from the run's earlier ones", file, what)
            return
        try:
            before = json.loads(_dump_cards(_read_cards(file)))
        except UsageError as error:
            raise UsageError(
                f"--resume: {error}; restore the file, or remove it to continue with the current cards"
            ) from None
        for key, was, is_now in _differences(before, json.loads(_dump_cards(cards))):
            if _MEMBER.sub("", key).partition(".")[2] not in _OF_A_SERVICE:
                raise UsageError(
                    f"--resume: {self.path} was started with {what} {key} = {was!r}, now it is {is_now!r}; "
                    "use a new run"
                )

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run's lock; raises UsageError if another process has it."""
        return locked(self.path, "--run-dir")

    def append(self, file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines to a JSON Lines file; raises RunStopped if writing fails."""
        with or_stop(file), file.open("a", encoding="utf-8") as stream:
            stream.write(_lines(rows))

    def forget_from(
        self,
        iteration: int,
        check: Callable[[Rows, Rows, Rows], None] = lambda metrics, dialogues, validations: None,
        *,
        validated: Container[int] = (),
    ) -> None:
        """Drop log lines from this iteration on, and a torn last line; they will be written again.

        check: called with the remaining rows of metrics, dialogues and validations before anything is changed.
        validated: the iterations whose validation remains.

        Raises:
            UsageError: a damaged line; and what `check` raises. RunStopped: writing failed.
        """
        logs = (self.metrics, self.dialogues, self.validation)
        kept = [[row for row in _rows_of_iterations(log) if row["iteration"] < iteration] for log in logs[:2]]
        kept.append([row for row in _rows_of_iterations(self.validation) if row["iteration"] in validated])
        check(*kept)
        for log, rows in zip(logs, kept, strict=True):
            if log != self.validation or log.exists():
                with or_stop(log):
                    write_text(log, _lines(rows))

    def save_checkpoint(
        self,
        iteration: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        *,
        score: float | None = None,
        keep: int = 2,
    ) -> int:
        """Write the state after `iteration` finished iterations, as Checkpoints.save does.

        The logs are flushed first, so that a checkpoint never counts lines that are not on disk.
        """
        for log in (self.metrics, self.dialogues, self.validation):
            if log != self.validation or log.exists():
                with or_stop(log):
                    flush(log)
        return self.checkpoints.save(iteration, tensors, values, score=score, keep=keep)

    def tidy_checkpoints(self, iteration: int, keep: int) -> None:
        """Remove checkpoints after this iteration, from which the run could not resume, and tidy the others."""
        with or_stop(self.path / "checkpoints"):
            self.checkpoints.forget_after(iteration)
            self.checkpoints.tidy(keep)

    def load_checkpoint(self) -> State | None:
        """Newest undamaged checkpoint; see Checkpoints.load."""
        return self.checkpoints.load()


def check_same_config(before: Mapping[str, Any], config: Config, what: str) -> None:
    """Raise UsageError with the first difference that is not allowed on resume."""
    for key, was, now in _differences(dict(before), config.model_dump(mode="json")):
        if key not in _MAY_CHANGE_ON_RESUME:
            raise UsageError(f"--resume: {what} with {key} = {was!r}, now it is {now!r}; use a new run")


def _read_cards(file: Path) -> list[Card]:
    """Finished cards; raises UsageError if the file is missing or damaged."""
    content = read_json(file)
    if not isinstance(content, list):
        raise UsageError(f"{file}: not a list of cards")
    return [check_card(card, f"{file}: {i}") for i, card in enumerate(content)]


def _dump_cards(cards: Sequence[Card]) -> str:
    return json.dumps([card.model_dump(mode="json") for card in cards], indent=2) + "\n"


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows_of_iterations(log: Path) -> Rows:
    """The rows of a log; raises UsageError for a row without an iteration."""
    try:
        rows = read_jsonl(log)
    except FileNotFoundError:
        return []
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("iteration"), int):
            raise UsageError(f"{log}: line {number} is damaged: it has no iteration; restore or remove it")
    return rows


def _differences(old: Any, new: Any, key: str = "") -> Iterable[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(was, now, f"{key}.{place}" if key else str(place))
    elif old != new:
        yield key, old, new


def _environment(config: Config) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    return {
        "seed": config.seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
