"""JSON Lines: the parser, and the strict reader of the toolkit's own logs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_marl.errors import UsageError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a JSON object."""

    problem: str
    text: str


def parse_jsonl(content: bytes, *, nan_as_none: bool = False) -> Iterator[tuple[int, Row | BadLine]]:
    """Parse JSON Lines: (line number from 1, object or problem). The last line may lack a newline.

    Args:
        nan_as_none: read NaN and infinities as None.
    """
    lines = content.split(b"\n")
    for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        row: Any = None
        problem = "is not a JSON object"
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=(lambda constant: None) if nan_as_none else None)
        except (ValueError, RecursionError):
            problem = "is not JSON"
        yield number, row if isinstance(row, dict) else BadLine(problem, line.decode("utf-8", errors="replace"))


def complete_lines(content: bytes) -> bytes:
    """The content without a torn last line, which a killed process left without a newline."""
    return content[: content.rfind(b"\n") + 1]


def read_jsonl(file: Path) -> list[Row]:
    """Read one of the toolkit's logs; a torn last line is skipped.

    Raises:
        UsageError: any other line is damaged; the error names the first one.
    """
    rows = []
    for number, row in parse_jsonl(complete_lines(file.read_bytes())):
        if isinstance(row, BadLine):
            raise UsageError(f"{file}: line {number} is damaged: {row.text[:60]!r}")
        rows.append(row)
    return rows
