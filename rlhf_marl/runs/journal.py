"""What services answered, so that a run that was killed asks (and pays for) nothing twice.

answers/iteration_00007.jsonl: a line per answer. It is no cache: equal requests of a run are asked each time, as they
would be without a journal. An answer is read back only when its iteration is played again after a resume, and then the
n-th request of a kind gets the n-th answer it got before: also from a service that answers differently each time the
run goes on bit for bit.
"""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, final

from rlhf_marl.files.atomic import flush, unwritable
from rlhf_marl.runs.iterations import numbered, numbered_name

_log = logging.getLogger("rlhf_marl")
Answer = TypeVar("Answer")  # plain data, as JSON keeps it


@final
class Journal:
    """Of one run; without a folder it keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._file: Path | None = None
        self._answers: dict[str, Any] = {}
        self._asked: Counter[str] = Counter()
        self._writing = threading.Lock()

    def begin(self, iteration: int) -> None:
        """From here on requests belong to this iteration; what was answered in it before is at hand."""
        if self._folder is None:
            return
        self._file = self._folder / f"{numbered_name(iteration)}.jsonl"
        self._asked.clear()
        self._answers = _read(self._file) if self._file.is_file() else {}

    def ticket(self, request: Any) -> str:
        """Names a request (plain data), and which of several equal ones it is; to be drawn in a fixed order."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        self._asked[digest] += 1
        return f"{digest}-{self._asked[digest]}"

    def answer(self, ticket: str, ask: Callable[[], Answer]) -> Answer:
        """What was answered before, or what `ask` returns, then kept. Safe from several threads.

        Raises:
            RunStopped: the disk refuses; and whatever `ask` raises.
        """
        if ticket in self._answers:
            return self._answers[ticket]
        answer = ask()
        if self._file is not None:
            with self._writing:
                _append(self._file, ticket, answer)
        return answer

    def forget_before(self, iteration: int) -> None:
        """Remove answers of earlier iterations: no checkpoint is left from which they would be asked again."""
        if self._folder is not None:
            for number, file in numbered(self._folder, ".jsonl"):
                if number < iteration:
                    file.unlink()


UNRECORDED = Journal(None)


def _append(file: Path, ticket: str, answer: Any) -> None:
    line = json.dumps({"ticket": ticket, "answer": answer, "check": _check(ticket, answer)}) + "\n"
    try:
        new = not file.is_file()
        if not file.parent.is_dir():
            file.parent.mkdir()
            flush(file.parent.parent)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
        flush(file)
        if new:
            flush(file.parent)
    except OSError as error:
        raise unwritable(file, error) from None


def _check(ticket: str, answer: Any) -> str:
    return hashlib.sha256(json.dumps([ticket, answer]).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    """Whole lines; a damaged one is told and its request asked again. The file is cut after its last whole line."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    answers = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            if row["check"] != _check(row["ticket"], row["answer"]):
                raise ValueError
            answers[row["ticket"]] = row["answer"]
        except (ValueError, KeyError, TypeError, RecursionError):
            _log.warning("%s: line %d is damaged; what it answered is asked again", file, number)
    return answers
