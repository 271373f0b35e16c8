"""Pydantic's errors as lines for people."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

# A key pasted into the wrong place must not be repeated on the screen.
_SECRET = re.compile(r"key|token$|secret|password", re.IGNORECASE)


def explain(error: ValidationError, source: str, content: Any, allowed: Iterable[str] = ()) -> str:
    """One line per mistake: `source: dotted.key: what was given; what is allowed`.

    Args:
        allowed: all key names there are, for "did you mean".
        content: the data that was validated. Pydantic puts the tags of unions into its locations; a part that is no key
            of the data is such a tag, and not what the user looks for.
    """
    return "\n".join(_line(detail, source, content, list(allowed)) for detail in error.errors(include_url=False))


def _line(detail: Any, source: str, content: Any, allowed: list[str]) -> str:
    key = ".".join(_keys(detail["loc"], content))
    where = f"{source}: {key}" if key else source
    given = "a value" if _SECRET.search(key) else _shorten(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key (value {given}){_hint(detail, allowed)}"
        case "missing":
            return f"{where}: missing; it is required"
        case "literal_error":
            return f"{where}: {given} is not allowed; choose {detail['ctx']['expected']}"
        case "union_tag_invalid":
            tag = detail["ctx"]["discriminator"].strip("'")
            return f"{where}.{tag}: {detail['ctx']['tag']!r} is not allowed; choose {detail['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{where}.{detail['ctx']['discriminator'].strip(chr(39))}: missing; it is required"
        case "value_error":
            return f"{where}: {detail['ctx']['error']}"
        case _:
            return f"{where}: {given} given; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _hint(detail: Any, allowed: list[str]) -> str:
    close = difflib.get_close_matches(str(detail["loc"][-1]), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; `rlhf-marl schema` lists the keys"


def _keys(location: tuple[int | str, ...], content: Any) -> list[str]:
    keys = []
    for place, part in enumerate(location):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if place < len(location) - 1:
                continue
        keys.append(str(part))
    return keys


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
