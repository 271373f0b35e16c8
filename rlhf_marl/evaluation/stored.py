"""evaluation.json: its form, whose agents it is of, and reading it back. No torch: report and export read it too."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import read_rows
from rlhf_marl.runs.iterations import newest_checkpoint

VERSION = 2
NUMBERS, DIALOGUES = "evaluation.json", "evaluation_dialogues.jsonl"
Number = Annotated[float, Field(allow_inf_nan=False)]
Grid = list[list[Number | None]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """numbers: evaluation.json; rows: evaluation_dialogues.jsonl; reused: both were there already."""

    numbers: dict[str, Any]
    rows: list[dict[str, Any]]
    reused: bool


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)  # other keys are for people


class Metric(_Part):
    """A mean for the base model and for the trained agent; the interval is that of the paired difference."""

    base: Number
    trained: Number
    difference: Number
    low: Number | None
    high: Number | None
    n: int


class WinRate(_Part):
    rate: Number
    low: Number | None
    high: Number | None
    n: int
    judge: str
    position_consistent: Number | None = None


class Mean(_Part):
    mean: Number
    low: Number | None
    high: Number | None


class Speaker(_Part):
    verdict: str
    own_reward: Metric
    held_out_reward: Metric | None = None
    win_rate: WinRate | None = None
    length: Metric | None = None
    distinct_1: Metric | None = None
    distinct_2: Metric | None = None
    self_repetition: Metric | None = None
    refusal_harmful: Metric | None = None
    refusal_harmless: Metric | None = None


class Agent(Speaker):
    agent: int
    reward_model: str
    kl_to_base: Mean | None = None
    entropy: Metric | None = None
    truncated: Metric | None = None


class AgainstSingle(_Part):
    own_reward: Metric
    held_out_reward: Metric | None = None


class Team(Speaker):
    against_single: AgainstSingle | None = None


class Settings(_Part):
    questions: str
    n_questions: int
    turns: int
    confidence: Annotated[float, Field(gt=0, lt=1)]


class Judge(_Part):
    name: str
    trained_agents: list[int]


class CrossRewards(_Part):
    judges: list[Judge]
    rows: list[str]
    base: Grid
    trained: Grid
    difference: Grid
    low: Grid
    high: Grid

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for key in ("base", "trained", "difference", "low", "high"):
            grid = getattr(self, key)
            if len(grid) != len(self.rows) or any(len(row) != len(self.judges) for row in grid):
                raise ValueError(f"{key} is not a table of {len(self.rows)} rows and {len(self.judges)} judges")
        return self


class Numbers(_Part):
    """What of evaluation.json is read again."""

    version: int
    settings: Settings
    agents: list[Agent]
    team: Team
    held_out_judges: list[str]
    cross_rewards: CrossRewards
    agreement: Metric | None
    controller_fallbacks: Metric
    warnings: list[str]


def parse(file: Path) -> tuple[Numbers, dict[str, Any]]:
    """Read an evaluation.json: checked, and as it stands there.

    Raises:
        OSError: it cannot be read. UsageError: it is damaged or of another version; one line.
    """
    content: Any = None
    try:
        content = json.loads(file.read_text("utf-8"))
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != VERSION:
            raise UsageError(f"{file}: is of version {version}; this rlhf-marl reads version {VERSION}")
        return Numbers.model_validate(content), content
    except ValidationError as error:
        raise UsageError(explain(error, str(file), content).splitlines()[0]) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON: {error}") from None


def read_evaluation(path: Path) -> Evaluation | None:
    """A run's evaluation, if there is a whole one of this version."""
    try:
        _, numbers = parse(path / NUMBERS)
        rows = [row for _, row in read_rows(path / DIALOGUES)]
    except (OSError, UsageError):
        return None
    return Evaluation(numbers, rows, reused=True) if rows else None


def agents_fingerprint(path: Path) -> dict[str, str | None]:
    """SHA-256 of the adapters of a run directory and of its newest checkpoint's manifest; None where there is none."""
    adapters = sorted(path.glob("adapters/agent_*/adapter_model.safetensors"))
    newest = newest_checkpoint(path)
    manifest = [file for file in [newest / "manifest.json"] if file.is_file()] if newest else []
    return {"adapters_sha256": _sha256(path, adapters), "checkpoint_sha256": _sha256(path, manifest)}


def is_current(settings: Mapping[str, Any], path: Path) -> bool:
    """Whether an evaluation with these settings is of the agents that the run has now.

    Checkpoints may have been removed since: a finished run is whole without them.
    """
    now = agents_fingerprint(path)
    return settings.get("adapters_sha256") == now["adapters_sha256"] and (
        now["checkpoint_sha256"] in (None, settings.get("checkpoint_sha256"))
    )


def _sha256(path: Path, files: list[Path]) -> str | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
