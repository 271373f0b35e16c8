"""Read what a trained run holds: adapters, reward models, training questions; with fallbacks.

Each function returns what it found, and adds a line to `notes` for every deviation from a finished, intact run.
"""

import json
import math
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rlhf_marl.config import Config
from rlhf_marl.dialogue.questions import load_questions
from rlhf_marl.errors import UsageError
from rlhf_marl.files.iterations import iteration_name
from rlhf_marl.files.jsonl import BadLine, complete_lines, parse_jsonl, read_jsonl
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.rewards import Card
from rlhf_marl.runs.checkpoints import State
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.handed_out import FOLDERS, Choice, checkpoint_of
from rlhf_marl.runs.validations import ended_early
from rlhf_marl.training.build import recipes_of


class OnlyRecorded(UsageError):
    """The run has no agents to load, but the metrics recorded in training can still be shown."""


_ABSENT = (OSError, ValueError, KeyError, TypeError, UsageError, SafetensorError)


def load_agents(
    adapters: StackedAdapters, run: RunDirectory, config: Config, notes: list[str], which: Choice = "last"
) -> str:
    """Load the trained adapters; returns their source.

    The last ones come from adapters/, or from the newest checkpoint if adapters/ cannot be used or the run has trained
    further since it wrote them. The best ones come from best/ or the best checkpoint.

    Raises:
        OnlyRecorded: there are neither.
    """
    folder, word = FOLDERS[which], "best" if which == "best" else "newest"
    reason = _load_adapters(adapters, run, folder)
    checkpoint = state_of(run, which)
    if checkpoint is None:
        if reason is not None:
            raise OnlyRecorded(_nothing_trained(run, reason))
        return folder
    tensors, values = checkpoint
    parameters = adapters.parameters.data
    names = [f"agent_{agent}.adapter" for agent in range(adapters.n_agents)]
    fits = all(name in tensors and tensors[name].shape == parameters.shape[1:] for name in names)
    trained = torch.stack([tensors[name] for name in names]) if fits else torch.empty(0)
    if reason is None:
        if torch.equal(trained, parameters.cpu()):
            return folder
        meant = checkpoint_of(run.path, which)
        if meant is not None and meant.name != iteration_name(values["iteration"]):
            notes.append(f"checkpoint {meant.name} is damaged: {folder}/ may be older than it")
            return folder
        reason = "the run has trained further since it wrote them"
    if not fits:
        raise UsageError(f"{run.path}: the checkpoint's adapters do not fit config.yaml's model and lora")
    parameters.copy_(trained)
    notes.append(
        f"{folder}/ cannot be used ({reason}): loaded the {word} checkpoint, after {values['iteration']} of "
        f"{config.iterations} iterations"
    )
    return f"checkpoint of iteration {values['iteration']}"


def state_of(run: RunDirectory, which: Choice) -> State | None:
    """The newest or best undamaged checkpoint; None if all are damaged, of another version, or gone."""
    try:
        return run.load_checkpoint() if which == "last" else run.checkpoints.best()
    except UsageError:
        return None


def _load_adapters(adapters: StackedAdapters, run: RunDirectory, folder: str) -> str | None:
    """Load the adapters in a folder of the run; returns the reason if that fails."""
    try:
        for agent in range(adapters.n_agents):
            adapters.load(agent, run.path / folder / f"agent_{agent}", str(run.path))
    except _ABSENT as error:
        return str(error).splitlines()[0]
    return None


def check_agents(run: RunDirectory) -> None:
    """Raise OnlyRecorded if there is no file to load an agent from. Called before minutes of loading."""
    if not any(run.adapters.glob("*/*")) and not any(run.path.glob("checkpoints/*/*")):
        raise OnlyRecorded(_nothing_trained(run, "there are none"))


def _nothing_trained(run: RunDirectory, reason: str) -> str:
    return (
        f"{run.path}: no intact adapters ({reason}) and no intact checkpoint, so there are no agents; continue "
        "training with --resume"
    )


def recorded(run: RunDirectory) -> list[dict[str, Any]]:
    """The run's intact metrics: a row per update and agent, without damaged lines."""
    try:
        content = complete_lines(run.metrics.read_bytes())
    except OSError:
        return []
    rows = []
    for _, row in parse_jsonl(content):
        if isinstance(row, BadLine):
            continue
        try:
            known = (int(row["agent"]), str(row["reward_model"]), int(row["iteration"]), float(row["reward_scaled"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
        if math.isfinite(known[3]):
            rows.append(row | dict(zip(("agent", "reward_model", "iteration", "reward_scaled"), known, strict=True)))
    return rows


def open_run(path: Path, where: str) -> tuple[RunDirectory, Config]:
    """The run and its config; raises UsageError, or OnlyRecorded if only the config is unreadable.

    where: the command, for error messages.
    """
    try:
        return RunDirectory.open(path, where)
    except UsageError as error:
        if not (path / "dialogues.jsonl").is_file():
            raise
        raise OnlyRecorded(
            f"{error}\n{path}: cannot be loaded without a config.yaml that this version can read; "
            f"`rlhf-marl report {path}` shows what was recorded"
        ) from None


def reward_cards(run: RunDirectory, config: Config, notes: list[str]) -> Sequence[Card]:
    """The reward models as they were when the run began, or those that its config names.

    Raises:
        UsageError: neither can be read.
    """
    try:
        cards = run.cards()
        if len(cards) != len(config.agents):
            raise UsageError(f"reward_models.json has {len(cards)} cards for {len(config.agents)} agents")
        for card in cards:
            model = getattr(card, "model", None)
            if isinstance(model, str) and Path(model).is_absolute() and not Path(model).exists():
                raise UsageError(f"reward model {card.name}: {model} no longer exists")
        return cards
    except UsageError as error:
        notes.append(
            f"{error}; the reward models were rebuilt from config.yaml and may differ from those used in training"
        )
    return recipes_of(config, f"{run.path}/config.yaml")


def trained_questions(config: Config, run: RunDirectory, notes: list[str]) -> list[str]:
    """The questions used in training."""
    try:
        return load_questions(config.prompts, config.seed, f"{run.path}/config.yaml").texts
    except UsageError as error:
        notes.append(f"training questions may be among the evaluation's, because they cannot be read: {error}")
        return []


def check_state(run: RunDirectory, config: Config, notes: list[str]) -> None:
    """Note if the run is unfinished, damaged, or from another version."""
    try:
        rows = read_jsonl(run.metrics)
        iterations = max((row["iteration"] for row in rows), default=-1) + 1
        validations = read_jsonl(run.validation) if run.validation.is_file() else []
        if iterations < config.iterations and ended_early(validations, iterations) is None:
            notes.append(f"the run is not finished: {iterations} of {config.iterations} iterations are recorded")
    except (OSError, UsageError, KeyError, TypeError) as error:
        notes.append(f"metrics.jsonl is damaged or missing ({error}); it is not needed")
    try:
        version = json.loads((run.path / "environment.json").read_text("utf-8"))["packages"]["rlhf-marl"]
        here = metadata.version("rlhf-marl")
        if version != here:
            notes.append(f"the run was made by rlhf-marl {version}; this is version {here}")
    except (OSError, ValueError, KeyError, TypeError, metadata.PackageNotFoundError) as error:
        notes.append(f"the version that made the run is unknown: environment.json: {error}")
