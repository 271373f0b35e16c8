"""Preference pairs: which of two responses to a prompt people prefer."""

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.user_data import load_split, read_rows

_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Pair:
    """One judged pair. prompt: everything before the responses."""

    prompt: str
    chosen: str
    rejected: str


def load_pairs(source: str, where: str, split: str = "train") -> list[Pair]:
    """Read pairs from a JSON Lines file (also gzipped), a shipped one, or a `datasets` source.

    A row holds `chosen` and `rejected`, and `prompt` unless these contain it. Each is text, a list of messages, or a
    transcript in hh-rlhf format ("\\n\\nHuman: ...\\n\\nAssistant: ...").

    Raises:
        UsageError: no such source, or a row that is not a pair; names the line.
    """
    if re.search(r"\.jsonl(\.gz)?$", source):
        path = find_data(source, where)
        name, rows = f"{path}: line", list(read_rows(path))
    else:
        name, rows = f"{source}: row", list(enumerate(load_split(source, where, split), 1))
    pairs = []
    for number, row in rows:
        try:
            pairs.append(_pair(row))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"{name} {number} is not a preference pair: {reason}") from None
    if not pairs:
        raise UsageError(f"{source}: holds no preference pairs")
    return pairs


def _pair(row: Any) -> Pair:
    chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
    prompt = _turns(row["prompt"]) if row.get("prompt") else []
    if not prompt:
        # Usually the shared turns are all but the last; some human-written pairs diverge earlier.
        alike = sum(1 for _ in takewhile(lambda texts: texts[0] == texts[1], zip(chosen, rejected, strict=False)))
        alike = min(alike, len(chosen) - 1, len(rejected) - 1)
        if alike < 1:
            raise ValueError("without a prompt, chosen and rejected must begin with the same message")
        prompt, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    pair = Pair(*("\n\n".join(texts) for texts in (prompt, chosen, rejected)))
    if not (pair.chosen and pair.rejected):
        raise ValueError("an empty response")
    return pair


def _turns(value: Any) -> list[str]:
    """The turns of a message list, an hh-rlhf transcript, or plain text."""
    if isinstance(value, list):
        return [str(message["content"]).strip() for message in value]
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is neither text nor messages")
    if _TURN.match(value):
        return [text.strip() for text in _TURN.split(value)[2::2]]
    return [value.strip()]
