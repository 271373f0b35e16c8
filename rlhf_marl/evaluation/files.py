"""Read evaluation.json and evaluation_dialogues.jsonl. No torch import: report and export use it too."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.schema import VERSION, Numbers
from rlhf_marl.files.hashing import sha256_of
from rlhf_marl.files.user_data import read_rows
from rlhf_marl.runs.handed_out import FOLDERS, Choice, checkpoint_of

NUMBERS, DIALOGUES = "evaluation.json", "evaluation_dialogues.jsonl"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """numbers: evaluation.json; rows: evaluation_dialogues.jsonl; reused: both existed already."""

    numbers: dict[str, Any]
    rows: list[dict[str, Any]]
    reused: bool


def read_numbers(file: Path) -> tuple[Numbers, dict[str, Any]]:
    """Read an evaluation.json: validated, and as plain data.

    Raises:
        OSError: it cannot be read. UsageError: it is damaged or of another version; one line.
    """
    content: Any = None
    try:
        content = json.loads(file.read_text("utf-8"))
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != VERSION:
            raise UsageError(f"{file}: has version {version}; this rlhf-marl reads version {VERSION}")
        return Numbers.model_validate(content), content
    except ValidationError as error:
        raise UsageError(explain(error, str(file), content).splitlines()[0]) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON: {error}") from None


def read_evaluation(path: Path) -> Evaluation | None:
    """A run's evaluation; None if it is missing, damaged or of another version."""
    try:
        _, numbers = read_numbers(path / NUMBERS)
        rows = [row for _, row in read_rows(path / DIALOGUES)]
    except (OSError, UsageError):
        return None
    return Evaluation(numbers, rows, reused=True) if rows else None


def agents_fingerprint(path: Path, which: Choice = "last") -> dict[str, str | None]:
    """SHA-256 of a run's best or last adapters, and of their checkpoint's manifest; None where there is none."""
    adapters = sorted(path.glob(f"{FOLDERS[which]}/agent_*/adapter_model.safetensors"))
    checkpoint = checkpoint_of(path, which)
    manifest = [file for file in [checkpoint / "manifest.json"] if file.is_file()] if checkpoint else []
    return {"adapters_sha256": _sha256(path, adapters), "checkpoint_sha256": _sha256(path, manifest)}


def is_current(settings: Mapping[str, Any], path: Path) -> bool:
    """Whether an evaluation with these settings belongs to the run's current agents.

    Checkpoints may have been removed since, because a finished run does not need them.
    """
    now = agents_fingerprint(path, settings.get("agents", "last"))
    return settings.get("adapters_sha256") == now["adapters_sha256"] and (
        now["checkpoint_sha256"] in (None, settings.get("checkpoint_sha256"))
    )


def _sha256(path: Path, files: list[Path]) -> str | None:
    """SHA-256 of the names and contents of several files."""
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(bytes.fromhex(sha256_of(file)))
    return digest.hexdigest()
