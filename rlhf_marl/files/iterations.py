"""Names of files kept per iteration: checkpoints/iteration_00010, answers/iteration_00007.jsonl. No torch import."""

import re
from pathlib import Path

_NAME = re.compile(r"iteration_([0-9]{5,})")


def iteration_name(iteration: int) -> str:
    """iteration_00010 for 10."""
    return f"iteration_{iteration:05d}"


def iteration_of(name: str) -> int | None:
    """10 for iteration_00010; None for other names."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def iteration_paths(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    """(iteration, path) of every entry named after an iteration, in order; other names are ignored."""
    if not folder.exists():
        return []
    entries = [path for path in folder.iterdir() if path.name.endswith(suffix)]
    numbers = ((iteration_of(path.name.removesuffix(suffix)), path) for path in entries)
    return sorted((number, path) for number, path in numbers if number is not None)


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """(iteration, path) of the checkpoints in a folder, damaged ones included, in order."""
    return [(iteration, path) for iteration, path in iteration_paths(folder) if path.is_dir()]


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run directory's newest checkpoint, which may be damaged."""
    checkpoints = checkpoint_folders(run / "checkpoints")
    return checkpoints[-1][1] if checkpoints else None
