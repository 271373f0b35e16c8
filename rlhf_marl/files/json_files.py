"""Whole JSON files."""

import json
from pathlib import Path
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line


def read_json(file: Path) -> Any:
    """The file's content; raises UsageError, one line, if it is missing or damaged."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read: {first_line(error)}") from None
