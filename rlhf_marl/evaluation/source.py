"""What of a run can be evaluated: its agents, its reward models, its training questions; and what stands in for them.

Each function returns what it found, and adds a line to `notes` where that is not what a finished run would have.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlhf_marl.config import Config
from rlhf_marl.dialogue.prompts import load_questions
from rlhf_marl.dialogue.system import DialogueSystem
from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import Card
from rlhf_marl.run_directory import RunDirectory, read_jsonl


class NothingTrained(UsageError):
    """The run has neither adapters nor a checkpoint; what it recorded can still be shown."""


_ABSENT = (OSError, ValueError, KeyError, TypeError, UsageError, SafetensorError)


def load_agents(system: DialogueSystem, run: RunDirectory, notes: list[str]) -> str:
    """Put the trained adapters into the system, those of adapters/ or of the newest checkpoint; says which.

    Raises:
        NothingTrained: there are neither.
    """
    try:
        for agent in range(len(system.cards)):
            system.adapters.load(agent, run.adapters / f"agent_{agent}", str(run.path))
        return "adapters"
    except _ABSENT as error:
        reason = str(error).splitlines()[0]
    try:
        checkpoint = run.load_checkpoint()
    except UsageError:
        checkpoint = None
    if checkpoint is None:
        raise NothingTrained(_nothing_trained(run, reason))
    tensors, values = checkpoint
    if tensors["adapters"].shape != system.adapters.parameters.shape:
        raise UsageError(f"{run.path}: the checkpoint's adapters do not fit config.yaml's model and lora")
    system.adapters.parameters.data.copy_(tensors["adapters"])
    notes.append(
        f"adapters/ cannot be used ({reason}): evaluated the newest checkpoint, after {values['iteration']} of "
        f"{system.config.iterations} iterations"
    )
    return f"checkpoint of iteration {values['iteration']}"


def check_agents(run: RunDirectory) -> None:
    """Raise NothingTrained if there is no file to load an agent from, before minutes of loading."""
    if not any(run.adapters.glob("*/*")) and not any(run.path.glob("checkpoints/*/*")):
        raise NothingTrained(_nothing_trained(run, "there are none"))


def _nothing_trained(run: RunDirectory, reason: str) -> str:
    return (
        f"evaluate: {run.path} has no whole adapters ({reason}) and no whole checkpoint: there are no agents to "
        "evaluate; train on with --resume"
    )


def recorded(run: RunDirectory) -> list[dict[str, Any]]:
    """The run's metrics as far as they are whole: a row per update and agent."""
    try:
        return [row for row in read_jsonl(run.metrics) if {"agent", "reward_model", "reward_scaled"} <= row.keys()]
    except (OSError, UsageError, AttributeError):
        return []


def open_run(path: Path) -> tuple[RunDirectory, Config]:
    """The run and its config; raises UsageError, which says what can still be read if the config cannot."""
    try:
        return RunDirectory.open(path, "evaluate")
    except UsageError as error:
        if not (path / "dialogues.jsonl").is_file():
            raise
        raise UsageError(
            f"{error}\n{path}: cannot be evaluated without a config.yaml that this version understands; what it "
            "recorded can still be read in dialogues.jsonl and metrics.jsonl"
        ) from None


def agents_fingerprint(run: RunDirectory) -> str:
    """SHA-256 of the files that `load_agents` would read."""
    files = sorted(run.adapters.glob("agent_*/adapter_model.safetensors"))
    files += sorted(run.path.glob("checkpoints/iteration_*/manifest.json"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(run.path)).encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def reward_cards(run: RunDirectory, notes: list[str]) -> list[Card] | None:
    """The reward models as they were when the run began; None: those that its config names are to be built anew."""
    try:
        cards = run.cards()
    except UsageError as error:
        notes.append(f"{error}; the reward models were built anew from config.yaml")
        return None
    for card in cards:
        model = getattr(card, "model", None)
        if isinstance(model, str) and Path(model).is_absolute() and not Path(model).exists():
            notes.append(
                f"reward model {card.name}: {model} is gone; the reward models were built anew from config.yaml, and "
                "may differ from those of the training"
            )
            return None
    return cards


def trained_questions(config: Config, run: RunDirectory, notes: list[str]) -> list[str]:
    """The questions that training asked."""
    try:
        return load_questions(config.prompts, config.seed, f"{run.path}/config.yaml").texts
    except UsageError as error:
        notes.append(f"whether a question was trained on is not known: {error}")
        return []


def check_state(run: RunDirectory, config: Config, notes: list[str]) -> None:
    """Note what the run's files say about it: unfinished, damaged, or of another version."""
    from importlib import metadata

    try:
        rows = read_jsonl(run.metrics)
        iterations = max((row["iteration"] for row in rows), default=-1) + 1
        if iterations < config.iterations:
            notes.append(f"the run is not finished: {iterations} of {config.iterations} iterations are recorded")
    except (OSError, UsageError, KeyError, TypeError) as error:
        notes.append(f"metrics.jsonl is damaged or missing ({error}); the evaluation does not need it")
    try:
        version = json.loads((run.path / "environment.json").read_text("utf-8"))["packages"]["rlhf-marl"]
        here = metadata.version("rlhf-marl")
        if version != here:
            notes.append(f"the run was made by rlhf-marl {version}, this is {here}")
    except (OSError, ValueError, KeyError, TypeError, metadata.PackageNotFoundError) as error:
        notes.append(f"the version that made the run is not known: environment.json: {error}")
