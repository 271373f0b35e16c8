"""Find data files: in the working folder, else in the checkout, else in the installed package."""

import contextlib
import os
from pathlib import Path

from rlhf_marl.errors import UsageError

_PACKAGE = Path(__file__).parents[1]
_WHEEL_DATA = _PACKAGE / "data"
DATA_ROOT = _WHEEL_DATA if _WHEEL_DATA.is_dir() else _PACKAGE.parent  # holds configs/, prompts/, reward_models/


def cache_dir() -> Path:
    """Folder for converted models: $RLHF_MARL_CACHE, else $XDG_CACHE_HOME/rlhf_marl, else ~/.cache/rlhf_marl."""
    if "RLHF_MARL_CACHE" in os.environ:
        return Path(os.environ["RLHF_MARL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rlhf_marl"


def expanded(reference: str) -> Path:
    """A path with `~` and `~user` expanded, if the user exists."""
    try:
        return Path(reference).expanduser()
    except RuntimeError:
        return Path(reference)


def find_data(reference: str, where: str) -> Path:
    """Resolve a file reference: absolute or relative to the working folder, else a shipped file.

    Args:
        reference: a path such as `reward_models/harmless.yaml`.
        where: the file and key that contain the reference, for the error message.

    Raises:
        UsageError: no such file; lists the shipped files in a folder of that name.
    """
    candidates = [expanded(reference)]
    if not candidates[0].is_absolute():
        candidates.append(DATA_ROOT / reference)
    for candidate in candidates:
        with contextlib.suppress(OSError):  # an invalid file name, or a folder without access
            if candidate.is_file():
                return candidate.resolve()
    folder = DATA_ROOT / Path(reference).parent
    shipped = sorted(f"{Path(reference).parent}/{path.name}" for path in folder.glob("*.*")) if folder.is_dir() else []
    hint = f"; shipped: {', '.join(shipped)}" if shipped and folder != DATA_ROOT else ""
    raise UsageError(f"{where}: {reference!r} does not exist{hint}")
