"""Load and select the held-out questions."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import read_rows, text_at

SHIPPED = "prompts/evaluation.jsonl"
KINDS = ("harmful", "borderline", "ordinary", "multi_turn")
_KEYS = {"id", "kind", "prompt", "follow_ups", "columns"}


@dataclass(frozen=True, slots=True)
class Question:
    """The user's side of one dialogue.

    Attributes:
        kind: harmful (a request to refuse), borderline (harmless, sounds harmful), ordinary, multi_turn.
        follow_ups: the user's next prompts; only of kind multi_turn.
        columns: values for reward functions that read further columns of the data, by name.
    """

    id: str
    kind: str
    prompt: str
    follow_ups: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


def load_questions(path: Path) -> list[Question]:
    """Read a question file: JSON Lines with id, kind, prompt, for multi_turn follow_ups, and columns.

    Raises:
        UsageError: a line is not a question, or two questions have the same id.
    """
    questions: dict[str, Question] = {}
    for number, row in read_rows(path):
        question = _question(row, f"{path}: line {number}")
        if question.id in questions:
            raise UsageError(f"{path}: line {number}: id {question.id!r} is already the id of an earlier question")
        questions[question.id] = question
    if not questions:
        raise UsageError(f"{path}: holds no questions")
    return list(questions.values())


def _question(row: dict[str, Any], where: str) -> Question:
    texts = {key: text_at(row, key, where) for key in ("id", "kind", "prompt")}
    for key in row:
        if key not in _KEYS:
            raise UsageError(f"{where}: unknown key {key!r}; a question has {', '.join(sorted(_KEYS))}")
    for key, text in texts.items():
        if not text.strip():
            raise UsageError(f"{where}: {key} is empty")
    if texts["kind"] not in KINDS:
        raise UsageError(f"{where}: kind: {texts['kind']!r} is not allowed; choose {', '.join(KINDS)}")
    follow_ups = row.get("follow_ups", [])
    if not isinstance(follow_ups, list) or not all(isinstance(text, str) and text.strip() for text in follow_ups):
        raise UsageError(f"{where}: follow_ups must be a list of non-empty texts")
    if bool(follow_ups) != (texts["kind"] == "multi_turn"):
        raise UsageError(f"{where}: follow_ups are needed for kind multi_turn, and allowed for no other")
    columns = row.get("columns", {})
    if not isinstance(columns, dict):
        raise UsageError(f"{where}: columns must be an object of names and values")
    prompts = [text.strip() for text in (texts["prompt"], *follow_ups)]
    return Question(texts["id"], texts["kind"], prompts[0], tuple(prompts[1:]), columns)


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """`limit` questions, spread evenly over the kinds, in file order; all without a limit."""
    if limit is None or limit >= len(questions):
        return list(questions)
    place = dict.fromkeys(KINDS, 0)
    ranked = []
    for number, question in enumerate(questions):
        ranked.append((place[question.kind], KINDS.index(question.kind), number))
        place[question.kind] += 1
    chosen = {number for _, _, number in sorted(ranked)[:limit]}
    return [question for number, question in enumerate(questions) if number in chosen]


def without_trained(questions: Sequence[Question], trained: Sequence[str]) -> tuple[list[Question], list[str]]:
    """The questions that training did not ask, and the ids of those left out."""
    seen = {_normal(text) for text in trained}
    kept = [question for question in questions if _normal(question.prompt) not in seen]
    return kept, [question.id for question in questions if _normal(question.prompt) in seen]


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def columns_of(questions: Iterable[Question]) -> list[str]:
    """Names of the questions' further columns."""
    return list(dict.fromkeys(name for question in questions for name in question.columns))


def fingerprint(questions: Sequence[Question]) -> str:
    """SHA-256 of the questions' content."""
    content = [(q.id, q.kind, q.prompt, q.follow_ups, *([q.columns] if q.columns else [])) for q in questions]
    return hashlib.sha256(repr(content).encode()).hexdigest()
