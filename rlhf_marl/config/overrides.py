"""Command-line overrides: dotted keys applied to the data of a YAML file."""

from collections.abc import Sequence
from typing import Any

import yaml

from rlhf_marl.errors import UsageError
from rlhf_marl.files.yaml_files import parse_yaml


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set dotted keys (`--a.b.0.c value` or `--a.b.0.c=value`) in nested mappings and lists; values are YAML.

    Without an index, a key under a list sets every item: `--agents.reward_model x.yaml`, or
    `"[x.yaml, y.yaml, z.yaml]"` with one value each.
    """
    remaining = list(overrides)
    while remaining:
        option = remaining.pop(0)
        if not option.startswith("--") or len(option) == 2:
            raise UsageError(f"command line: {option!r} is not an option; config keys are given as --key.sub value")
        key, has_value, text = option[2:].partition("=")
        if not has_value:
            if not remaining:
                raise UsageError(f"command line: --{key}: no value given")
            text = remaining.pop(0)
        set_key(content, key, parse_value(text))
    return content


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set one dotted key in nested mappings and lists, as an override does; raises UsageError if there is no place."""
    _set(content, key.split("."), value, key)


def parse_value(text: str) -> Any:
    """Parse numbers, true, false, null, lists, {mappings} and quoted text as YAML; anything else is plain text."""
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, UsageError, ValueError, RecursionError):
        return text
    plain_text = isinstance(value, str) and text.lstrip()[:1] not in ("'", '"')
    looks_like_text = isinstance(value, dict) and not text.lstrip().startswith("{")
    return text if plain_text or looks_like_text else value


def _set(content: Any, parts: Sequence[str], value: Any, key: str) -> None:
    """Set the value at these parts of `key`, below `content`."""
    part, rest = parts[0], parts[1:]
    if isinstance(content, list) and not part.isdecimal():
        _set_each(content, parts, value, key)
        return
    place: Any = int(part) if isinstance(content, list) else part
    if isinstance(content, list) and place >= len(content):
        raise UsageError(
            f"command line: --{key}: {part!r} is not an index of a list of {len(content)} (0 is the first)"
        )
    if not rest:
        content[place] = value
        return
    if isinstance(content, dict) and content.get(part) is None:
        content[part] = {}
    if not isinstance(content[place], dict | list):
        raise UsageError(f"command line: --{key}: {part!r} holds {content[place]!r}, which has no keys below it")
    _set(content[place], rest, value, key)


def _set_each(items: list[Any], parts: Sequence[str], value: Any, key: str) -> None:
    """Set one key of every list item: one value for all, or a list with one value per item."""
    values = value if isinstance(value, list) else [value] * len(items)
    if len(values) != len(items):
        name = key.removesuffix(f".{'.'.join(parts)}")
        raise UsageError(f"command line: --{key}: {len(values)} values given for {len(items)} {name}")
    for item, one in zip(items, values, strict=True):
        if not isinstance(item, dict):
            raise UsageError(f"command line: --{key}: {item!r} has no keys below it")
        _set(item, parts, one, key)
