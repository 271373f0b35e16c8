"""What the runs of one setting left: arrays over seeds and points, kept in a file of its own."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.setting import Setting

VERSION = 1  # of the files; raised when the same setting would give other numbers


@final
@dataclass(frozen=True, slots=True)
class Result:
    """Of one setting.

    Attributes:
        arrays: (S, P) each: value (J of the policies: exact for two agents, else the mean reward since the point
            before), reward, and History's health figures; (P,) points; (S,) gap (spectral) and eta (smallest
            weight of A), messages and bytes sent; (S, R) consensus: disagreement of
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
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    metadata = {
        "version": str(VERSION),
        "setting": result.setting.model_dump_json(),
        "seconds": str(result.seconds),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in result.arrays.items()}
    save_file(arrays, temporary, metadata)
    os.replace(temporary, path)


def load(path: Path, setting: Setting) -> Result | None:
    """What `save` wrote, or None if there is nothing whole (a damaged file counts as nothing and is run again).

    Raises:
        UsageError: written by another version.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            version = metadata.get("version", "?")
            if version != str(VERSION):
                raise UsageError(
                    f"--out: {path} holds results of version {version}, this is {VERSION}; choose another folder"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return Result(setting, arrays, float(metadata["seconds"]))
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
