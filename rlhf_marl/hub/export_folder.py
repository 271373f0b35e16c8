"""Write an export folder atomically; it replaces only an unchanged earlier export."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.files.atomic import writing_folder
from rlhf_marl.files.hashing import sha256_of
from rlhf_marl.files.json_files import read_json

MARKER = ".rlhf_marl_export.json"  # names and hashes of an export's files; not uploaded


def check_target(target: Path) -> None:
    """Raise UsageError unless the folder is new, empty, or an unchanged export."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / MARKER).is_file():
        raise UsageError(f"--to: {str(target)!r} already exists and is not an rlhf-marl export; choose another name")
    try:
        unchanged = read_object(target / MARKER) == _hashes(target)
    except UsageError:
        unchanged = False
    if not unchanged:
        raise UsageError(f"--to: {str(target)!r} has changed since it was exported; choose another name, or remove it")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object; raises UsageError, one line, if it does not."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise UsageError(f"{file}: contains a {type(found).__name__}, not a JSON object")
    return found


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder except the marker, by relative path."""
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: sha256_of(file) for name, file in files.items() if name != MARKER}


@contextmanager
def writing_export(target: Path) -> Iterator[Path]:
    """Yield a new folder that replaces the target when the block ends, and is removed after an error."""
    try:
        with writing_folder(target) as folder:
            yield folder
            marker = folder / MARKER
            marker.write_text(json.dumps(_hashes(folder), indent=2) + "\n", "utf-8")
            for file in folder.rglob("*.safetensors"):  # safetensors creates files that only their owner can read
                file.chmod(marker.stat().st_mode)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RlhfMarlError(f"--to: {str(target)!r} cannot be written: {reason}") from None
