"""Readers of user data: JSON Lines and `datasets` sources. Each error is one line that says where it is."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.files.jsonl import BadLine, parse_jsonl
from rlhf_marl.sanitise import first_line, printable


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-blank line of a JSON Lines file, gzipped if its name ends with .gz.

    Raises:
        UsageError: unreadable, not UTF-8, or a line that is not a JSON object.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    for number, row in parse_jsonl(content):
        if not isinstance(row, BadLine):
            yield number, row
        elif row.text.strip():
            raise UsageError(f"{path}: line {number} {row.problem}: {row.text[:60]!r}")


def load_split(
    name: str, where: str, split: str, *, subset: str | None = None, revision: str | None = None, advice: str = ""
) -> Any:
    """One split of a `datasets` source; raises UsageError, which ends with `advice`, if it cannot be loaded."""
    import datasets  # slow to import, and only needed here

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the library raises many unrelated types
        raise UsageError(f"{where}: cannot load {name!r} (split {split!r}): {first_line(error)}{advice}") from None


def text_at(row: dict[str, Any], key: str, where: str) -> str:
    """A row's text. Raises UsageError if it is missing, empty, or cannot be encoded as UTF-8."""
    if key not in row:
        raise UsageError(f"{where} has no column {key!r}; it has {printable(', '.join(row))[:200]}")
    text = row[key]
    if not isinstance(text, str):
        raise UsageError(f"{where}: {key} is {str(text)[:60]!r}; it must be text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: {key} contains a lone surrogate (half a character)") from None
    return text
