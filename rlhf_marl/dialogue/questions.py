"""Where dialogues start: a fixed question, a JSONL list or a `datasets` source, in a seeded order."""

from pathlib import Path
from typing import final

import numpy as np

from rlhf_marl.config.schema import DatasetPrompts, FixedPrompt, JsonlPrompts
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.user_data import load_split, read_rows, text_at


@final
class Questions:
    """The initial questions and their order: each pass through the list is a seeded permutation."""

    def __init__(self, texts: list[str], seed: int) -> None:
        self.texts = texts
        self._seed = seed

    def index(self, dialogue: int) -> int:
        """Index of the question that dialogue number `dialogue` starts with."""
        epoch, place = divmod(dialogue, len(self.texts))
        order = np.random.default_rng(np.random.SeedSequence([self._seed, epoch, 0, 0, 1])).permutation(len(self.texts))
        return int(order[place])


def load_questions(prompts: FixedPrompt | JsonlPrompts | DatasetPrompts, seed: int, where: str) -> Questions:
    """Read the prompt source.

    Raises:
        UsageError: missing file, torn line, missing column, or a prompt that is not text.
    """
    match prompts:
        case FixedPrompt():
            texts = [prompts.question]
        case JsonlPrompts():
            texts = _jsonl_column(find_data(prompts.path, f"{where}: prompts.path"), prompts.column)
        case DatasetPrompts():
            texts = _dataset_column(prompts, where)
    if not texts:
        raise UsageError(f"{where}: prompts: the source holds no prompts")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UsageError(f"{where}: prompts: prompt {number} is {text[:60]!r}; every prompt must be non-empty text")
    return Questions([text.strip() for text in texts], seed)


def _jsonl_column(path: Path, column: str) -> list[str]:
    return [text_at(row, column, f"{path}: line {number}") for number, row in read_rows(path)]


def _dataset_column(prompts: DatasetPrompts, where: str) -> list[str]:
    data = load_split(
        prompts.name,
        f"{where}: prompts.name",
        prompts.split,
        subset=prompts.subset,
        revision=prompts.revision,
        advice="; offline, download it elsewhere and give the folder, or use source: jsonl",
    )
    if prompts.column not in data.column_names:
        raise UsageError(
            f"{where}: prompts.column: {prompts.column!r} is not a column; choose from {', '.join(data.column_names)}"
        )
    return [text_at(row, prompts.column, f"{where}: prompts: row {number}") for number, row in enumerate(data, 1)]
