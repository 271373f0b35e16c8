"""Where dialogues start: a fixed question, a file or a `datasets` source, in a seeded order."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from rlhf_marl.config.schema import DatasetPrompts, FixedPrompt, JsonlPrompts
from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import checked, load_rows
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.conversations import read_messages, read_prompt
from rlhf_marl.sanitise import printable


@final
class Questions:
    """The initial questions and their order: each pass through the list is a seeded permutation.

    Attributes:
        conversations: the messages that each dialogue starts with: the question, and what stands before it.
        rows: the other columns of each question's row.
    """

    def __init__(
        self, prompts: Sequence[str | list[Message]], seed: int, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """prompts: texts, or messages that end with one of the user."""
        self.conversations = [read_messages(text, "prompt") if isinstance(text, str) else text for text in prompts]
        self.rows = [{} for _ in prompts] if rows is None else list(rows)
        self._seed = seed

    @property
    def texts(self) -> list[str]:
        """The questions alone."""
        return [messages[-1]["content"] for messages in self.conversations]

    @property
    def columns(self) -> list[str]:
        """Names of the other columns."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def index(self, dialogue: int) -> int:
        """Index of the question that dialogue number `dialogue` starts with."""
        epoch, place = divmod(dialogue, len(self.conversations))
        key = np.random.SeedSequence([self._seed, epoch, 0, 0, 1])
        return int(np.random.default_rng(key).permutation(len(self.conversations))[place])

    def only(self, kept: Sequence[int]) -> "Questions":
        """The questions of these indices."""
        return Questions(
            [self.conversations[index] for index in kept], self._seed, [self.rows[index] for index in kept]
        )


def load_questions(prompts: FixedPrompt | JsonlPrompts | DatasetPrompts, seed: int, where: str) -> Questions:
    """Read the prompt source. A prompt is text, a list of messages, or a transcript in hh-rlhf format.

    Raises:
        UsageError: missing file, torn line, missing column, or a row without a prompt, unless they are skipped.
    """
    match prompts:
        case FixedPrompt():
            rows = [(f"{where}: prompts: question", {"question": prompts.question})]
            column = "question"
        case JsonlPrompts():
            rows, column = load_rows(prompts.path, f"{where}: prompts.path"), prompts.column
        case DatasetPrompts():
            source = {"subset": prompts.subset, "revision": prompts.revision}
            rows, column = load_rows(prompts.name, f"{where}: prompts.name", prompts.split, **source), prompts.column
    if not rows:
        raise UsageError(f"{where}: prompts: the source holds no prompts")
    columns = dict.fromkeys(name for _, row in rows for name in row)
    if column not in columns:
        choice = printable(", ".join(columns))[:200]
        raise UsageError(f"{where}: prompts.column: {column!r} is not a column; choose from {choice}")
    on_bad_row = "refuse" if isinstance(prompts, FixedPrompt) else prompts.on_bad_row

    def read(row: dict[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        return read_prompt(row.get(column), column), {name: row[name] for name in row if name != column}

    found = [item for _, item in checked(rows, read, "is not a prompt: ", on_bad_row)]
    return Questions([messages for messages, _ in found], seed, [others for _, others in found])
