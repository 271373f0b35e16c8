"""Turn pydantic's errors into readable one-line messages."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from rlhf_marl.sanitise import printable, shortened

# Limits for numbers without a bound of their own: above them float32 or memory would overflow.
LARGEST = 1e6


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and text.isprintable()
    except ValueError:
        usable = False
    if not usable or " " in text:
        raise ValueError("not a valid address; it must be http://host[:port][/path] or https://...")
    if "@" in parts.netloc:
        raise ValueError("an address must not contain a user name or password; use a key with api_key_env")
    return text


# Error messages do not repeat the value: it may contain a password.
Address = Annotated[str, AfterValidator(_address)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Retries = Annotated[int, Field(ge=0, le=1000)]

# An API key pasted into the wrong field must not be printed.
_SECRET = re.compile(r"key|token$|secret|password", re.IGNORECASE)


def explain(error: ValidationError, where: str, content: Any, allowed: Iterable[str] = ()) -> str:
    """One line per mistake: `where: dotted.key: what was given; what is allowed`.

    Args:
        allowed: all valid key names, for "did you mean".
        content: the data that was validated. Pydantic's locations include union tags; a part that is not a key of the
            data is such a tag and is left out.
    """
    return "\n".join(
        printable(_line(detail, where, content, list(allowed))) for detail in error.errors(include_url=False)
    )


def _line(detail: Any, where: str, content: Any, allowed: list[str]) -> str:
    key = ".".join(_keys(detail, content))
    where = f"{where}: {key}" if key else where
    given = "a value" if _SECRET.search(key) else shortened(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"{where}: unknown key (value {given}){_hint(detail, allowed)}"
        case "missing":
            return f"{where}: missing; it is required"
        case "literal_error":
            return f"{where}: {given} is not allowed; choose {detail['ctx']['expected']}"
        case "union_tag_invalid" | "union_tag_not_found" as mistake:
            tag = detail["ctx"]["discriminator"].strip("'")
            where = f"{where}.{tag}" if key else f"{where}: {tag}"
            if mistake == "union_tag_not_found":
                return f"{where}: missing; it is required"
            return f"{where}: {detail['ctx']['tag']!r} is not allowed; choose {detail['ctx']['expected_tags']}"
        case "value_error":
            return f"{where}: {detail['ctx']['error']}"
        case _:
            return f"{where}: {given} given; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _hint(detail: Any, allowed: list[str]) -> str:
    close = difflib.get_close_matches(str(detail["loc"][-1]), allowed, n=1)
    if close or 0 < len(allowed) < 10:
        return f"; did you mean {close[0]!r}?" if close else f"; choose {', '.join(allowed)}"
    return "; `rlhf-marl schema` lists the keys"


def _keys(detail: Any, content: Any) -> list[str]:
    keys = []
    for place, part in enumerate(detail["loc"], 1):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if place < len(detail["loc"]) or detail["type"] != "missing":
                continue
        keys.append(str(part))
    return keys
