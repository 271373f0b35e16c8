"""Journal of service answers (controller, judges, servers), replayed after a resume so that nothing is paid for twice.

answers/iteration_00007.jsonl holds one line per answer. It is not a cache: identical requests are sent each time.
Answers are replayed only when their iteration is repeated after a resume. The n-th of several identical requests gets
the n-th answer, so the run continues bit for bit even if the service samples.
"""

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

from rlhf_marl.files.atomic import flush, or_stop
from rlhf_marl.files.iterations import iteration_name, iteration_paths
from rlhf_marl.files.jsonl import BadLine, complete_lines, parse_jsonl

_log = logging.getLogger("rlhf_marl")
Answer = TypeVar("Answer")  # plain data that survives a JSON round trip


class Recorder(Protocol):
    """What the training loop asks of the journals of a run, wherever they are."""

    def begin(self, iteration: int) -> None:
        """Start an iteration: its recorded answers, if any, will be replayed."""
        ...

    def forget_before(self, iteration: int) -> None:
        """Remove answers of earlier iterations, which no remaining checkpoint can repeat."""
        ...


@final
class Journal:
    """The journal of one run; without a folder, nothing is recorded."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._file: Path | None = None
        self._answers: dict[str, Any] = {}
        self._asked: Counter[str] = Counter()
        self._writing = threading.Lock()

    def begin(self, iteration: int) -> None:
        """Start an iteration: its recorded answers, if any, will be replayed."""
        if self.folder is None:
            return
        self._file = self.folder / f"{iteration_name(iteration)}.jsonl"
        self._asked.clear()
        self._answers = _read(self._file) if self._file.is_file() else {}

    def ticket(self, request: Any) -> str:
        """Key of a request (plain data): its hash and a counter of identical requests. Call in a fixed order."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        self._asked[digest] += 1
        return f"{digest}-{self._asked[digest]}"

    def answer(self, ticket: str, ask: Callable[[], Answer]) -> Answer:
        """The recorded answer; without one, call `ask` and record its result. Thread-safe.

        Raises:
            RunStopped: writing failed. Errors of `ask` propagate.
        """
        if ticket in self._answers:
            return self._answers[ticket]
        answer = ask()
        if self._file is not None:
            with self._writing:
                _append(self._file, ticket, answer)
        return answer

    def forget_before(self, iteration: int) -> None:
        """Remove answers of earlier iterations, which no remaining checkpoint can repeat."""
        if self.folder is not None:
            for number, file in iteration_paths(self.folder, ".jsonl"):
                if number < iteration:
                    file.unlink()


UNRECORDED = Journal(None)


def _append(file: Path, ticket: str, answer: Any) -> None:
    line = json.dumps({"ticket": ticket, "answer": answer, "check": _check(ticket, answer)}) + "\n"
    with or_stop(file):
        new = not file.is_file()
        if not file.parent.is_dir():
            file.parent.mkdir(parents=True)
            flush(file.parent.parent)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
        flush(file)
        if new:
            flush(file.parent)


def _check(ticket: Any, answer: Any) -> str:
    return hashlib.sha256(json.dumps([ticket, answer]).encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any]:
    """Recorded answers by ticket. Warns of damaged lines; cuts a torn last line off the file."""
    content = file.read_bytes()
    whole = complete_lines(content)
    if len(whole) < len(content):
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    answers = {}
    for number, row in parse_jsonl(whole):
        if isinstance(row, BadLine) or row.get("check") != _check(row.get("ticket"), row.get("answer")):
            _log.warning("%s: line %d is damaged; its request is sent again", file, number)
        else:
            answers[row["ticket"]] = row["answer"]
    return answers
