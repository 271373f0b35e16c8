"""The run directory: everything a run leaves behind, readable at any moment, resumable from its last checkpoint.

config.yaml        the resolved config           environment.json   versions, hardware, seed
metrics.jsonl      a line per update and agent   dialogues.jsonl    a line per turn of each dialogue
checkpoints/       iteration_00010/{state.safetensors, state.json}, the newest two
adapters/agent_0/  PEFT format                   critics.safetensors
topology.json      the consensus matrix          report.html        written at the end
"""

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, final

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_marl.config import Config, check_config, dump_config
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards.card import Card, check_card
from rlhf_marl.yaml_io import load_yaml

_PACKAGES = ("rlhf-marl", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy")
_MAY_CHANGE_ON_RESUME = {"iterations", "checkpoint_every", "stop_after_skipped", "tracker"}
_KEPT_CHECKPOINTS = 2
_BEGINNING = {"checkpoints", "environment.json", "metrics.jsonl", "dialogues.jsonl", "reward_models.json", "config.tmp"}
_TENSORS, _VALUES = "state.safetensors", "state.json"
_log = logging.getLogger("rlhf_marl")


@final
class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.dialogues = path / "dialogues.jsonl"
        self.adapters = path / "adapters"
        self.critics = path / "critics.safetensors"
        self._checkpoints = path / "checkpoints"
        self._reward_models = path / "reward_models.json"

    @classmethod
    def create(cls, path: Path, config: Config, cards: Sequence[Card]) -> "RunDirectory":
        """Start a new run; raises UsageError if something is already there."""
        cls.check_free(path)
        run = cls(path)
        try:
            run._checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--run-dir: {str(path)!r} cannot be created: {error.strerror}") from None
        (path / "environment.json").write_text(json.dumps(_environment(config), indent=2) + "\n", "utf-8")
        run._reward_models.write_text(_dump_cards(cards), "utf-8")
        run.metrics.touch()
        run.dialogues.touch()
        dump_config(config, path / "config.yaml")  # last: a folder with a config is a whole run directory
        return run

    def save_topology(self, matrix: Tensor) -> None:
        """Record the consensus matrix (N, N), for readers without torch."""
        (self.path / "topology.json").write_text(json.dumps({"matrix": matrix.tolist()}) + "\n", "utf-8")

    @staticmethod
    def check_free(path: Path) -> None:
        """Raise UsageError if a new run cannot start here; what a run left that died while it began does not count."""
        if path.is_dir() and {p.name for p in path.iterdir()} <= _BEGINNING:
            return
        if path.exists():
            raise UsageError(f"--run-dir: {str(path)!r} already exists; add --resume to go on, or choose another name")

    @classmethod
    def open(cls, path: Path, where: str = "run directory") -> tuple["RunDirectory", Config]:
        """An existing run and its config; raises UsageError if it is none."""
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{where}: {str(path)!r} is not a run directory: it has no config.yaml")
        return cls(path), check_config(load_yaml(path / "config.yaml"), str(path / "config.yaml"))

    @classmethod
    def resume(cls, path: Path, config: Config) -> "RunDirectory":
        """An existing run, if its config agrees with this one.

        Raises:
            UsageError: no run there, another process works on it, or the config differs in more than its length; names
                the first difference.
        """
        run, before = cls.open(path, "--resume")
        old, new = before.model_dump(mode="json"), config.model_dump(mode="json")
        for key, was, now in _differences(old, new):
            if key not in _MAY_CHANGE_ON_RESUME:
                raise UsageError(f"--resume: {path} was started with {key} = {was!r}, now it is {now!r}; use a new run")
        with run.locked():
            dump_config(config, path / "config.yaml")
        return run

    def cards(self) -> list[Card]:
        """The reward models that the run trains with; raises UsageError if their file is missing or damaged."""
        try:
            content = json.loads(self._reward_models.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._reward_models}: cannot be read: {error}") from None
        if not isinstance(content, list):
            raise UsageError(f"{self._reward_models}: is no list of cards")
        return [check_card(card, f"{self._reward_models}: {i}") for i, card in enumerate(content)]

    def check_cards(self, cards: Sequence[Card]) -> None:
        """Raise UsageError if a reward model's card is not what it was when the run began."""
        before, now = json.loads(self._reward_models.read_text("utf-8")), json.loads(_dump_cards(cards))
        for key, was, is_now in _differences(before, now):
            raise UsageError(
                f"--resume: {self.path} was started with reward model {key} = {was!r}, now it is {is_now!r}; "
                "use a new run"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process writes here; the lock of a dead process does not hold. UsageError if one does."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(f"--run-dir: {str(self.path)!r} is being written by another process") from None
        try:
            yield
        finally:
            lock.release()

    def append(self, file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to a JSON Lines file, flushed; raises RunStopped if the disk refuses."""
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise _unwritable(file, error) from None

    def forget_from(self, iteration: int) -> None:
        """Drop lines of iterations at or after this one (and a torn last line): they will be written again."""
        for file in (self.metrics, self.dialogues):
            kept = [row for row in read_jsonl(file) if row["iteration"] < iteration]
            temporary = file.with_suffix(".tmp")
            temporary.unlink(missing_ok=True)
            temporary.touch()
            self.append(temporary, kept)
            os.replace(temporary, file)

    def save_checkpoint(self, iteration: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write the state after `iteration` finished iterations beside the others, then make it visible by renaming.

        Files and folder are on the disk before the name is. Raises RunStopped if the disk refuses; the checkpoints
        before stay as they are.
        """
        folder = self._checkpoints / f"iteration_{iteration:05d}"
        temporary = folder.with_suffix(".tmp")
        try:
            for log in (self.metrics, self.dialogues):
                _flush(log)  # a checkpoint must not outlive the lines it counts as written
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / _TENSORS)
            manifest = {_TENSORS: _fingerprint(temporary / _TENSORS)}
            content = {"iteration": iteration, **values, "files": manifest}
            (temporary / _VALUES).write_text(json.dumps(content) + "\n", "utf-8")
            for path in (temporary / _TENSORS, temporary / _VALUES, temporary):
                _flush(path)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            _flush(self._checkpoints)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _unwritable(folder, error) from None
        for old in self._finished_checkpoints()[:-_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and values of the newest whole checkpoint, or None if there is none yet.

        A damaged one is passed over with a warning that says which and why.

        Raises:
            UsageError: there are checkpoints, and all are damaged.
        """
        finished = self._finished_checkpoints()
        for folder in reversed(finished):
            try:
                values = json.loads((folder / _VALUES).read_text("utf-8"))
                for name, fingerprint in values.pop("files").items():
                    if _fingerprint(folder / name) != fingerprint:
                        raise ValueError(f"{name} is not what was written")
                return load_file(folder / _TENSORS), values
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                _log.warning("checkpoint %s is damaged (%s); trying the one before", folder, error)
        if finished:
            raise UsageError(f"--resume: all checkpoints in {self._checkpoints} are damaged; start a new run")
        return None

    def _finished_checkpoints(self) -> list[Path]:
        finished = [p for p in self._checkpoints.glob("iteration_*") if p.suffix != ".tmp"]
        return sorted(finished, key=lambda p: int(p.name.removeprefix("iteration_")))


def _dump_cards(cards: Sequence[Card]) -> str:
    return json.dumps([card.model_dump(mode="json") for card in cards], indent=2) + "\n"


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: Exception) -> RunStopped:
    reason = getattr(error, "strerror", None) or error
    return RunStopped(f"{path} cannot be written: {reason}; make room and go on with --resume")


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON Lines file; a torn last line is left out."""
    lines = file.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


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
    import torch

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
