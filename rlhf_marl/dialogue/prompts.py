"""Where dialogues start: a fixed question, a JSONL list or a `datasets` source, in a seeded order."""

import json
from pathlib import Path
from typing import final

import numpy as np

from rlhf_marl.config import DatasetPrompts, FixedPrompt, JsonlPrompts
from rlhf_marl.errors import UsageError
from rlhf_marl.paths import find_data


@final
class Questions:
    """The initial questions and their order: each pass through the list is a permutation that the seed determines."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self.texts = texts
        self._seed = seed

    def index(self, dialogue: int) -> int:
        """Which question dialogue number `dialogue` starts with."""
        epoch, place = divmod(dialogue, len(self.texts))
        order = np.random.default_rng(np.random.SeedSequence([self._seed, epoch])).permutation(len(self.texts))
        return int(order[place])


def load_questions(prompts: FixedPrompt | JsonlPrompts | DatasetPrompts, seed: int, where: str) -> Questions:
    """Read the prompt source.

    Raises:
        UsageError: missing file, torn line, missing column, or a prompt that is no text.
    """
    match prompts:
        case FixedPrompt():
            rows: list[object] = [prompts.question]
        case JsonlPrompts():
            rows = _jsonl_column(find_data(prompts.path, f"{where}: prompts.path"), prompts.column)
        case DatasetPrompts():
            rows = _dataset_column(prompts, where)
    if not rows:
        raise UsageError(f"{where}: prompts: the source holds no prompts")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, str) or not row.strip():
            raise UsageError(
                f"{where}: prompts: row {number} is {str(row)[:60]!r}; every prompt must be non-empty text"
            )
    return Questions([str(row).strip() for row in rows], seed)


def _jsonl_column(path: Path, column: str) -> list[object]:
    rows: list[object] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise UsageError(f"{path}: line {number} is not JSON: {line[:60]!r}") from None
        if not isinstance(row, dict) or column not in row:
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UsageError(f"{path}: line {number} has no column {column!r}; it has {found}")
        rows.append(row[column])
    return rows


def _dataset_column(prompts: DatasetPrompts, where: str) -> list[object]:
    import datasets  # slow to import, and needed for this source alone

    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(prompts.name, prompts.subset, split=prompts.split, revision=prompts.revision)
    except Exception as error:  # the library raises many unrelated types for one user mistake
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{where}: prompts.name: cannot load {prompts.name!r} (split {prompts.split!r}): {reason}; "
            "offline, download it elsewhere and give the folder, or use source: jsonl"
        ) from None
    if prompts.column not in data.column_names:
        raise UsageError(
            f"{where}: prompts.column: {prompts.column!r} is not a column; choose from {', '.join(data.column_names)}"
        )
    return list(data[prompts.column])
