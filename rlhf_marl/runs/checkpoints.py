"""Checkpoints: written atomically, verified by hash when read. If one is damaged, the previous one is used.

checkpoints/iteration_00010/state.safetensors   what training changes, or, if agents write their own states,
checkpoints/iteration_00010/agent_0/            state.safetensors of one agent
checkpoints/iteration_00010/state.json          version, iteration, config, score, counters
checkpoints/iteration_00010/manifest.json       size and SHA-256 of all
checkpoints/best.json                           name and score of the best one
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import or_stop, write_text, writing_folder
from rlhf_marl.files.hashing import sha256_of
from rlhf_marl.files.iterations import checkpoint_folders, iteration_name

VERSION = 5  # increment when the meaning of a checkpoint changes
_TENSORS, _VALUES, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # other OSErrors may be temporary
_DAMAGED = (*_ABSENT, ValueError, KeyError, AttributeError, TypeError, RecursionError, SafetensorError)
_log = logging.getLogger("rlhf_marl")

_STATE_FILE = re.compile(r"(?:agent_[0-9]{1,6}/)?state\.safetensors")

State = tuple[Mapping[str, Tensor], dict[str, Any]]


@runtime_checkable
class WritesItself(Protocol):
    """A state that is not in this process."""

    def write(self, folder: Path) -> None:
        """Write agent_<i>/state.safetensors of every agent."""
        ...


def agent_file(checkpoint: Path, agent: int) -> Path:
    """Where an agent writes its own state in a checkpoint."""
    return checkpoint / f"agent_{agent}" / _TENSORS


@final
class AgentStates(Mapping[str, Tensor]):
    """The states that agents wrote themselves, read only if they are asked for."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self.folder, self._files = folder, files

    def _read(self) -> dict[str, Tensor]:
        return {name: tensor for file in self._files for name, tensor in load_file(self.folder / file).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


@final
class Checkpoints:
    """The checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(
        self,
        iteration: int,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        *,
        score: float | None,
        keep: int,
    ) -> int:
        """Write the state after `iteration` finished iterations; keep the newest `keep` and the best-scoring one.

        Returns the iteration of the oldest among the newest `keep`.

        Raises:
            RunStopped: writing failed; earlier checkpoints are unchanged.
        """
        folder = self._folder / iteration_name(iteration)
        content = {"version": VERSION, "iteration": iteration, "score": score, **values}
        with or_stop(folder):
            with writing_folder(folder) as temporary:
                if isinstance(tensors, WritesItself):
                    tensors.write(temporary)
                else:
                    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / _TENSORS)
                (temporary / _VALUES).write_text(json.dumps(content) + "\n", "utf-8")
                files = sorted(file for file in temporary.rglob("*") if file.is_file())
                manifest = {file.relative_to(temporary).as_posix(): _fingerprint(file) for file in files}
                (temporary / _MANIFEST).write_text(json.dumps(manifest), "utf-8")
            return self.tidy(keep)

    def load(self) -> State | None:
        """Tensors and values of the newest undamaged checkpoint, or None if there is none yet.

        Damaged ones are skipped with a warning that gives the reason.

        Raises:
            UsageError: all checkpoints are damaged, or one has another version or cannot be read at the moment.
        """
        try:
            finished = checkpoint_folders(self._folder)
        except OSError as error:
            raise _unreadable(self._folder, error) from None
        for _, folder in reversed(finished):
            if (state := _read_unless_damaged(folder, "trying the one before")) is not None:
                return state
        if finished:
            raise UsageError(f"--resume: all checkpoints in {self._folder} are damaged; start a new run")
        return None

    def best(self) -> State | None:
        """The undamaged checkpoint with the highest score (the earliest of ties), or None."""
        scored = _scored(checkpoint_folders(self._folder))
        while scored:
            folder = max(scored, key=scored.__getitem__)
            if (state := _read_unless_damaged(folder, "trying the next best")) is not None:
                return state
            del scored[folder]
        return None

    def forget_after(self, iteration: int) -> None:
        """Remove checkpoints of later iterations."""
        for number, folder in checkpoint_folders(self._folder):
            if number > iteration:
                shutil.rmtree(folder)

    def tidy(self, keep: int) -> int:
        """Write best.json; remove checkpoints neither best nor among the newest `keep`, and unfinished ones.

        Returns the iteration of the oldest among the newest `keep`, 0 if there is none.
        """
        for left in chain(self._folder.glob("*.tmp"), self._folder.glob(".*.old")):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        finished = checkpoint_folders(self._folder)
        scored = _scored(finished)
        best = max(scored, key=scored.__getitem__) if scored else None
        if best is not None:
            write_text(self._folder / "best.json", json.dumps({"folder": best.name, "score": scored[best]}) + "\n")
        else:
            (self._folder / "best.json").unlink(missing_ok=True)
        for _, old in finished[:-keep]:
            if old != best:
                shutil.rmtree(old)
        return finished[-keep:][0][0] if finished else 0


def _scored(finished: Sequence[tuple[int, Path]]) -> dict[Path, float]:
    return {folder: score for _, folder in finished if (score := _score(folder)) is not None}


def _score(folder: Path) -> float | None:
    """A checkpoint's score; None if it has none or is damaged."""
    try:
        score = json.loads((folder / _VALUES).read_text("utf-8"))["score"]
    except _DAMAGED:
        return None
    return score if isinstance(score, float) and math.isfinite(score) else None


def _read_unless_damaged(folder: Path, instead: str) -> State | None:
    """One checkpoint; None if it is damaged, with a warning that ends with `instead`."""
    try:
        return _read(folder)
    except _DAMAGED as error:
        _log.warning("checkpoint %s is damaged (%s); %s", folder, error, instead)
        return None
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--resume: {folder} cannot be read at the moment: {error.strerror}; nothing was changed; try again later"
    )


def _read(folder: Path) -> State:
    """Check and load one checkpoint; raises UsageError for another version, and one of _DAMAGED for damage."""
    values = json.loads((folder / _VALUES).read_text("utf-8"))
    manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
    states = sorted(name for name in manifest if _STATE_FILE.fullmatch(name))
    if not states or manifest.keys() != {*states, _VALUES}:
        raise ValueError(f"{_MANIFEST} does not name its files")
    for name, written in manifest.items():
        if _fingerprint(folder / name) != written:
            raise ValueError(f"{name} does not match {_MANIFEST}")
    if values["version"] != VERSION:
        raise UsageError(
            f"--resume: checkpoint {folder} has version {values['version']}, this rlhf-marl reads version {VERSION}: "
            "continue with the rlhf-marl that wrote it (see environment.json), or start a new run"
        )
    if states == [_TENSORS]:
        return load_file(folder / _TENSORS), values
    return AgentStates(folder, states), values


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
