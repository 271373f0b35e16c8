"""The Python API: `train`, `evaluate`, `export`, and `load_run` to inspect a run."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from accelerate import Accelerator

from rlhf_marl.config import Config, check_config, load_config
from rlhf_marl.errors import UsageError
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.hub.export import export as export
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.references import resolve_model
from rlhf_marl.policy.sampler import LocalChat
from rlhf_marl.reporting.page import refresh_report
from rlhf_marl.reporting.terminal import Display
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.services.journal import Journal
from rlhf_marl.training.build import Experiment, build, build_agents
from rlhf_marl.training.loop import run_training, save_results


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    name: str = "config",
    profile: bool = False,
    builder: Callable[..., Experiment] | None = None,
) -> "Run":
    """Train the config's agents and return the run.

    Args:
        config: a Config, plain data of the same shape, or the path of a YAML file.
        run_dir: output folder; by default runs/<name>-<time>.
        resume: continue from the newest checkpoint in `run_dir`.
        name: name of a config that is not a path, for error messages and the default folder.
        profile: print the time per stage at the end.
        builder: builds the experiment from (config, name, device, journal=...). By default
            `rlhf_marl.training.build.build`, which accepts other samplers, mixers and teams (see CONTRIBUTING.md), or
            with `runtime.kind: ray` `rlhf_marl.distributed.build.build_distributed`.

    Raises:
        UsageError: one line per mistake in the config or its files.
        RunStopped: a reward model or controller failed; the run directory can be resumed.
    """
    if isinstance(config, str | os.PathLike):
        name = os.fspath(config)
        config = load_config(name)
    elif not isinstance(config, Config):
        config = check_config(config, name)
    if resume and run_dir is None:
        raise UsageError("--resume: needs --run-dir, the run to continue")
    path = Path(run_dir) if run_dir is not None else Path("runs") / f"{Path(name).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    run = RunDirectory.resume(path, config) if resume else None
    if run is None:
        RunDirectory.check_free(path)  # before minutes of loading
    display = Display(config, path)
    display.loading()
    accelerator = _accelerator(config, path, name)
    trackers = config.tracker != "none"

    def report(iterations: int, rows: list[dict[str, Any]]) -> None:
        display.iteration(iterations, rows)
        if trackers:
            for row in rows:
                values = {f"agent_{row['agent']}/{k}": v for k, v in row.items() if isinstance(v, int | float)}
                accelerator.log(values, step=row["update"])

    experiment = (builder or _builder_of(config))(config, name, accelerator.device, journal=Journal(path / "answers"))
    with closing(experiment):
        if run is None:
            run = RunDirectory.create(path, config, experiment.cards)
        else:
            run.check_cards(experiment.cards)
        if trackers:
            accelerator.init_trackers("rlhf_marl")
        with run.locked(), _sigint(display.stopping) as interrupted, stopwatch(accelerator.device) as watch, display:
            run.save_topology(experiment.matrix)
            finished = run_training(experiment, run, report, lambda: bool(interrupted), watch)
            save_results(experiment, run)
            watch.lap()
    if trackers:
        accelerator.end_training()
    refresh_report(path)
    display.summary(read_jsonl(run.metrics), read_jsonl(run.dialogues), finished)
    if profile:
        display.profile(watch.total)
    if interrupted:
        raise KeyboardInterrupt
    return Run(path)


def evaluate(run_dir: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Evaluate a run on held-out questions. Writes evaluation.json into the run and returns its content.

    Args:
        options: fields of rlhf_marl.evaluation.evaluate.Options, such as questions="mine.jsonl" or limit=8.

    Raises:
        UsageError: not a run, nothing trained, an unknown option, or unusable questions or judges.
        RunStopped: a reward model or the controller failed.
    """
    from rlhf_marl.evaluation.evaluate import check_options, evaluate_run

    numbers = evaluate_run(Path(run_dir), check_options(options), lambda stage, done, total: None).numbers
    refresh_report(Path(run_dir))
    return numbers


def load_run(path: str | os.PathLike[str]) -> "Run":
    """Open a run directory. Raises UsageError if it is not one."""
    run = Run(Path(path))
    RunDirectory.open(run.path, "load_run")
    return run


@final
@dataclass(frozen=True)
class Run:
    """A finished (or interrupted) run."""

    path: Path

    @property
    def config(self) -> Config:
        return RunDirectory.open(self.path)[1]

    @property
    def base_model(self) -> str:
        """The agents' base model as `from_pretrained` accepts it: a folder or a hub id."""
        return resolve_model(self.config.model.name, f"{self.path}/config.yaml: model.name")

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per update and agent."""
        return pd.DataFrame(read_jsonl(RunDirectory(self.path).metrics))

    @property
    def dialogues(self) -> pd.DataFrame:
        """One row per turn of each dialogue."""
        return pd.DataFrame(read_jsonl(RunDirectory(self.path).dialogues))

    def agents(self, device: str = "cpu") -> list["Agent"]:
        """Load the base model once, with all trained adapters.

        Raises:
            UsageError: the run has no adapters yet.
        """
        run, config = RunDirectory.open(self.path)
        agents = build_agents(config, f"{self.path}/config.yaml", torch.device(device), start=False)
        for i in range(len(config.agents)):
            agents.adapters.load(i, run.adapters / f"agent_{i}", str(self.path))
        return [Agent(i, LocalChat(agents.sampler, slice(i, i + 1))) for i in range(len(config.agents))]


@final
@dataclass(frozen=True)
class Agent:
    """One trained agent, ready to chat."""

    index: int
    _chat: LocalChat

    def chat(self, prompt: str | Sequence[Message], max_tokens: int = 64) -> str:
        """The most likely answer to a prompt, or to a list of {"role": ..., "content": ...} messages."""
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        return self._chat([messages], max_tokens)[0].strip()


def _builder_of(config: Config) -> Callable[..., Experiment]:
    if config.runtime.kind == "local":
        return build
    from rlhf_marl.distributed.build import build_distributed

    return build_distributed


def _accelerator(config: Config, path: Path, where: str) -> Accelerator:
    if config.tracker == "none":
        return Accelerator()
    from accelerate.tracking import get_available_trackers

    if config.tracker not in map(str, get_available_trackers()):
        raise UsageError(f"{where}: tracker: {config.tracker!r} is not installed: pip install {config.tracker}")
    return Accelerator(log_with=config.tracker, project_dir=str(path / "tracker"))


@contextmanager
def _sigint(announce: Any) -> Iterator[list[bool]]:
    """The first Ctrl-C only sets the yielded list, so that the loop saves and ends; a second one interrupts."""
    pressed: list[bool] = []

    def handler(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)
        announce()

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not in the main thread, which handles Ctrl-C
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
