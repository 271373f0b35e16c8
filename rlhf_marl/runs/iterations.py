"""What a run keeps by iteration: checkpoints/iteration_00010, answers/iteration_00007.jsonl. Loads nothing heavy."""

import re
from pathlib import Path

_NAME = re.compile(r"iteration_([0-9]{5,})")


def numbered_name(iteration: int) -> str:
    """iteration_00010 for 10."""
    return f"iteration_{iteration:05d}"


def numbered(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    """What is numbered in the folder, in order; what else stands there, such as a copy by hand, is left alone."""
    if not folder.exists():
        return []
    entries = [path for path in folder.iterdir() if path.name.endswith(suffix)]
    names = ((_NAME.fullmatch(path.name.removesuffix(suffix)), path) for path in entries)
    return sorted((int(name[1]), path) for name, path in names if name)


def numbered_folders(folder: Path) -> list[tuple[int, Path]]:
    """Those that are folders, such as checkpoints, whole or not."""
    return [(number, path) for number, path in numbered(folder) if path.is_dir()]


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run directory's newest checkpoint, whole or not."""
    checkpoints = numbered_folders(run / "checkpoints")
    return checkpoints[-1][1] if checkpoints else None
