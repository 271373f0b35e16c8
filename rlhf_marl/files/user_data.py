"""Data that people hand in, JSON Lines and `datasets` sources: each mistake is one line that says where."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_marl.errors import UsageError, printable


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSON Lines file, gzipped if its name ends with .gz; blank lines are none.

    Raises:
        UsageError: unreadable, not UTF-8, or a line that is not a JSON object.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UsageError(f"{path}: line {number} is not JSON: {line[:60]!r}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}: line {number} is no JSON object: {line[:60]!r}")
        yield number, row


def load_split(
    name: str, where: str, split: str, *, subset: str | None = None, revision: str | None = None, advice: str = ""
) -> Any:
    """One split of a `datasets` source; raises UsageError, which ends with `advice`, if it cannot be loaded."""
    import datasets  # slow to import, and needed for this source alone

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the library raises many unrelated types for one user mistake
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{where}: cannot load {name!r} (split {split!r}): {reason}{advice}") from None


def text_at(row: dict[str, Any], key: str, where: str) -> str:
    """A row's non-empty text; raises UsageError if there is none, or none that can be written as UTF-8."""
    if key not in row:
        raise UsageError(f"{where} has no column {key!r}; it has {printable(', '.join(row))[:200]}")
    text = row[key]
    if not isinstance(text, str):
        raise UsageError(f"{where}: {key} is {str(text)[:60]!r}; it must be text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: {key} holds half a character (a lone surrogate)") from None
    return text
