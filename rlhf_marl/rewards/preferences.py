"""Preference pairs: which of two responses to a prompt people prefer."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import OnBadRow, checked, load_rows
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.conversations import flat, is_plain, read_messages, read_prompt, read_text, without_cue


@dataclass(frozen=True, slots=True)
class Pair:
    """One judged pair.

    Attributes:
        prompt: the messages before the responses; the last one is the user's.
        chosen, rejected: mostly one message of the assistant each; more where two dialogues part earlier.
        junk: the kind of junk that `rejected` is; empty if it is a proper answer, only a worse one.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    junk: str = ""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Prompt, chosen and rejected as text."""
        return flat(self.prompt), flat(self.chosen), flat(self.rejected)


def load_pairs(
    source: str,
    where: str,
    split: str = "train",
    *,
    columns: Mapping[Any, str] | None = None,
    on_bad_row: OnBadRow = "refuse",
) -> list[Pair]:
    """Read pairs from any source that `load_rows` reads.

    A row holds `chosen` and `rejected`: responses, or whole dialogues that begin alike. Responses need a `prompt`; with
    whole dialogues it may be given too. Each is text, a list of messages, or a transcript in hh-rlhf format. A column
    `junk` may name the kind of junk that `rejected` is.

    Args:
        columns: the names of these three, if they are others.
        on_bad_row: refuse, or skip and count, rows that are no pair.

    Raises:
        UsageError: no such source, or a row that is not a pair; names the line.
    """
    columns = {name: name for name in ("prompt", "chosen", "rejected")} | dict(columns or {})
    rows = load_rows(source, where, split)
    pairs = [
        pair for _, pair in checked(rows, lambda row: _pair(row, columns), "is not a preference pair: ", on_bad_row)
    ]
    if not pairs:
        raise UsageError(f"{source}: holds no preference pairs")
    return pairs


def _pair(row: dict[str, Any], columns: Mapping[str, str]) -> Pair:
    for name in ("chosen", "rejected"):
        if columns[name] not in row:
            raise ValueError(f"no column {columns[name]!r}")
    if columns["prompt"] != "prompt" and columns["prompt"] not in row:
        raise ValueError(f"no column {columns['prompt']!r}")
    asked, value = columns["prompt"], row.get(columns["prompt"])
    prompt = None if value in (None, "", []) else read_messages(without_cue(value), asked)
    chosen, rejected = (_side(row[columns[name]], columns[name], prompt is not None) for name in ("chosen", "rejected"))
    whole = [side[0]["role"] != "assistant" for side in (chosen, rejected)]
    if prompt is not None and any(whole) and not all(whole):
        raise ValueError("one of chosen and rejected is a whole dialogue, the other a response")
    if prompt is None or all(whole):
        beginning = _shared(chosen, rejected)
        if prompt is not None and not _within(prompt, beginning):
            raise ValueError(
                f"{asked} is given, and is not what {columns['chosen']} and {columns['rejected']} begin with"
            )
        prompt, chosen, rejected = beginning, chosen[len(beginning) :], rejected[len(beginning) :]
    if read_prompt(prompt, asked) != prompt:
        raise ValueError(f"{asked} ends with an answer; its last message must be the user's")
    for side, name in ((chosen, "chosen"), (rejected, "rejected")):
        if side[-1]["role"] != "assistant":
            raise ValueError(f"{columns[name]} ends with a message of the {side[-1]['role']}, not of the assistant")
    return Pair(prompt, chosen, rejected, "" if row.get("junk") in (None, "") else read_text(row["junk"], "junk"))


def _side(value: Any, column: str, has_prompt: bool) -> list[Message]:
    """The messages of one side; plain text is a response, where a prompt is given."""
    if not is_plain(value):
        return read_messages(value, column)
    if not has_prompt:
        raise ValueError("without a prompt, chosen and rejected must begin with the same message")
    return [Message(role="assistant", content=read_text(value, column))]


def _shared(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The messages that two dialogues begin with, to the user's last; a response is left to each."""
    alike = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False)))
    alike = min(alike, len(chosen) - 1, len(rejected) - 1)
    while alike and chosen[alike - 1]["role"] != "user":
        alike -= 1
    if not alike:
        raise ValueError("chosen and rejected must begin with the same message of the user, and go on")
    return chosen[:alike]


def _within(part: list[Message], whole: list[Message]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole)))
