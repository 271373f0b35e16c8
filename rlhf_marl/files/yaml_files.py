"""Safe YAML: 1e-5 is a number, duplicate keys are errors, size and nesting are bounded."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 50  # nesting levels: PyYAML's time is quadratic in them


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 floats that rejects duplicate keys, aliases (YAML bombs) and deep nesting."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if self._depth == _MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, f"nested more than {_MAX_DEPTH} deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which _Loader would read as a number."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(  # YAML 1.1 misses floats without a dot, such as 1e-5
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str) -> Any:
    """One YAML document from a string; raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML that `parse_yaml` reads as the same content; keys stay in order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError with file and line for anything else."""
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"{path}: {path.stat().st_size:,} bytes; at most {_MAX_BYTES:,} are allowed")
    try:
        content = parse_yaml(path.read_text("utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f": line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: contains {type(content).__name__}; a mapping of keys to values is needed")
    return content
