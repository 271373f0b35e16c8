"""Ways to damage inputs, and what a good end is; for test_mutations.py."""

import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from rlhf_marl.errors import RlhfMarlError

EXAMPLES = int(os.environ.get("MUTATIONS", "25"))
LONGEST = 30  # seconds that one input may take before it counts as a hang
MOST_NUMBERS = 10**7  # in the critics and adapters of one input
OUTCOMES: dict[str, Counter[str]] = defaultdict(Counter)
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
few = settings(many, max_examples=max(5, EXAMPLES // 4) if EXAMPLES < 100 else EXAMPLES)

MARKS = [
    "",
    "\n",
    "\t",
    "  ",
    ":",
    "- ",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    "#",
    "&a ",
    "*a",
    "!!",
    "|",
    ">",
    "%",
    "@",
    "\\",
]
SCALARS = ["null", "true", "-1", "0", "1e999", ".nan", ".inf", "9" * 400, "1_000", "0x10", "yes", "2026-01-01"]
PIECES = st.sampled_from(MARKS) | st.sampled_from(SCALARS) | st.text(max_size=6)
ODD = [
    *(None, True, False, 0, -1, 1, 2, 3, 50, 10**4, 10**6, 10**18, 10**400, 0.5, 1e-300, 1e300, float("nan")),
    *(float("inf"), "", "x", "~nouser/x", "/", "..", "\x00", "\x1b[2J\n", "\ud800", "x" * 5000, [], {}, [[]], [None]),
    json.loads("[" * 60 + "]" * 60),
]
LIKELY = [1, 2, 3, 4, 5, 8, 0.0, 0.01, 0.1, 0.5, 1.5, 1e-5, 300.0, 1e6, True, False, None]
LIKELY += ["td_q", "td_q_literal", "q_value", "consensus", "none", "normalised", "sgd", "restart", "complete", "star"]
LIKELY += [
    "grid",
    "random",
    "explicit",
    "sinkhorn",
    "uniform",
    "given",
    "sum",
    "minimum",
    "chat",
    "trl",
    "cpu",
    "float32",
]
LIKELY += [["q_proj"], [[0, 1]], [[0.5, 0.5], [0.5, 0.5]], {"kind": "shared"}, {"question": "why?"}, {"x": 1.0}]
VALUES = (
    st.sampled_from(LIKELY)
    | st.sampled_from(ODD)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-3, 64) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
)
PLACES = st.lists(st.integers(0, 50), min_size=1, max_size=5)


@st.composite
def edits(draw: Any) -> list[tuple[float, float, str]]:
    """Up to four replacements: position, length to remove, and text to insert."""
    one = st.tuples(st.floats(0, 1), st.floats(0, 0.05), PIECES)
    return draw(st.lists(one, min_size=1, max_size=4))


def edited(text: str, changes: list[tuple[float, float, str]]) -> str:
    for where, share, piece in changes:
        at = round(where * len(text))
        text = text[:at] + piece + text[at + round(share * share * len(text)) :]
    return text


def replaced(content: Any, path: list[int], value: Any) -> Any:
    """A copy of plain data in which the value at a place is another; a dictionary can also lose or gain a key."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[path[0] % len(keys)]
    copy = dict(content) if isinstance(content, dict) else list(content)
    if path[1:] == [0]:
        del copy[key]
    elif path[1:] == [1] and isinstance(copy, dict):
        copy["x" if not isinstance(value, str) else value] = content[key]
    else:
        copy[key] = replaced(content[key], path[1:], value)
    return copy


@contextmanager
def no_hang() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"still at work after {LONGEST} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)


def ends_well(kind: str, load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result, or the error: one of the toolkit's with bounded lines, or an OSError that names a file."""
    try:
        with no_hang():
            result = load(*arguments, **options)
    except (RlhfMarlError, OSError) as error:
        told = str(error) if isinstance(error, RlhfMarlError) else f"{error.filename}: {error.strerror}"
        assert told.strip()
        assert all(len(line) < 12_000 for line in told.split("\n")), told
        assert told.count("\n") < 100
        assert "Traceback" not in told
        OUTCOMES[kind]["refused"] += 1
        return error
    OUTCOMES[kind]["fine"] += 1
    return result


TEXTS = ["config.yaml", "environment.json", "reward_models.json", "topology.json", "metrics.jsonl", "dialogues.jsonl"]
TEXTS += [
    "evaluation.json",
    "evaluation_dialogues.jsonl",
    "checkpoints/best.json",
    "adapters/agent_0/adapter_config.json",
]
TEXTS += [f"checkpoints/iteration_00002/{name}" for name in ("state.json", "manifest.json")]
BINARIES = ["critics.safetensors", "adapters/agent_0/adapter_model.safetensors"]
BINARIES += [f"checkpoints/iteration_0000{i}/state.safetensors" for i in (1, 2)]
STRAY = ["checkpoints/iteration_00003", "checkpoints/iteration_x", "answers/iteration_00002.jsonl", "adapters/agent_x"]


@st.composite
def damage(draw: Any) -> Callable[[Path], str]:
    """Damage one file of a run; returns its name."""
    how = draw(st.sampled_from(["text", "text", "value", "value", "line", "bytes", "gone", "folder", "stray"]))
    name = draw(st.sampled_from(BINARIES if how == "bytes" else STRAY if how == "stray" else TEXTS))
    changes, path, value = draw(edits()), draw(PLACES), draw(VALUES)
    where, bit, length = draw(st.floats(0, 1)), draw(st.integers(0, 7)), draw(st.none() | st.floats(0, 1))

    def change(run: Path) -> str:
        file = run / name
        if how == "text":
            file.write_text(edited(file.read_text("utf-8"), changes), "utf-8", "surrogatepass")
        elif how in ("value", "line") and name.endswith(".jsonl"):
            rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            if how == "line":
                rows.insert(path[0] % len(rows), rows[path[-1] % len(rows)])
            else:
                rows[path[0] % len(rows)] = replaced(rows[path[0] % len(rows)], path[1:], value)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif how == "value" and name.endswith(".json"):
            file.write_text(json.dumps(replaced(json.loads(file.read_text()), path, value)))
            if name.endswith("state.json"):  # a whole checkpoint, whatever it holds
                from rlhf_marl.runs.checkpoints import _fingerprint

                manifest = file.with_name("manifest.json")
                found = json.loads(manifest.read_text()) | {"state.json": _fingerprint(file)}
                manifest.write_text(json.dumps(found))
        elif how == "bytes":
            content = bytearray(file.read_bytes())
            content[min(int(where * len(content)), len(content) - 1)] ^= 1 << bit
            file.write_bytes(content if length is None else content[: int(length * len(content))])
        elif how == "gone":
            file.unlink()
        elif how == "folder":
            file.unlink()
            file.mkdir()
        elif how == "stray":
            file.parent.mkdir(exist_ok=True)
            file.write_text(edited("{}\n", changes), "utf-8", "surrogatepass")
        return name

    return change


def contents(run: Path) -> dict[str, bytes]:
    skipped = (".lock", "report.html")
    return {str(f): f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file() and f.name not in skipped}
