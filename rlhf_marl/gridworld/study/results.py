"""Results of one setting: arrays over seeds and points, one file per setting."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialised

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import unwritable, write_bytes
from rlhf_marl.gridworld.setting import Setting

_log = logging.getLogger("rlhf_marl")
VERSION = 3  # file version; raise it when the same setting would give different numbers


@final
@dataclass(frozen=True, slots=True)
class Result:
    """Results of one setting.

    Attributes:
        arrays: (S, P) each: value (J of the policies: exact for two agents, else the mean reward since the point
            before), reward, and History's health figures; (P,) points; (S, N, N) power: A^t_gossip; (S,) gap (spectral)
            and eta (smallest weight of A), messages and bytes sent; (S, R) consensus: disagreement of
            the last critics after 0, 1, ... rounds of gossip, against that before; diagnostics.py's, for a few seeds.
        seconds: wall time of the run.
    """

    setting: Setting
    arrays: dict[str, np.ndarray]
    seconds: float


def fingerprint(setting: Setting, seed: int, seeds: int, n_points: int) -> str:
    """Names the file: equal fingerprints give equal numbers."""
    content = {"setting": setting.model_dump(mode="json"), "seed": seed, "seeds": seeds, "points": n_points}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save(path: Path, result: Result) -> None:
    """Write atomically; raises RunStopped if the disk is full or fails."""
    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    metadata = {
        "version": str(VERSION),
        "setting": result.setting.model_dump_json(),
        "seconds": str(result.seconds),
        "sha256": _digest(arrays),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, serialised(arrays, metadata))
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error, "start the same study again: it goes on") from None


def load(path: Path, setting: Setting) -> Result | None:
    """Read what `save` wrote; None if missing or damaged (damage is reported, and the setting runs again)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            digest = _digest(arrays)
            if metadata.get("sha256") != digest:
                raise ValueError("its numbers are not those that were written")
            return Result(setting, arrays, float(metadata["seconds"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        _log.warning("%s is damaged (%s); its setting is run again", path, error)
        return None


def check_version(folder: Path) -> None:
    """Raises UsageError if a study's folder has results of another version, for any setting.

    Unreadable files are left to `load`.
    """
    for path in (folder / "results.json", *sorted((folder / "settings").glob("*.safetensors"))):
        version = _version(path)
        if version not in (None, str(VERSION)):
            raise UsageError(
                f"--out: {path} holds results of version {version}, this is {VERSION}; choose another folder"
            )


def _version(path: Path) -> str | None:
    try:
        if path.suffix == ".json":
            return str(json.loads(path.read_text("utf-8"))["version"])
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("version")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
