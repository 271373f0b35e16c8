"""The Python API: `train`, `sweep`, `evaluate`, `export`, and `load_run` to inspect a run."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, final

import pandas as pd
import torch
from accelerate import Accelerator

from rlhf_marl.config import Config, check_config, load_config
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.validation import build_validation, prepare_validation
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.hub.export import export as export
from rlhf_marl.perf.memory import enough_memory, fits_into_memory
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.references import resolve_model
from rlhf_marl.policy.sampler import LocalChat
from rlhf_marl.reporting.page import live_report, refresh_report
from rlhf_marl.reporting.terminal import Display
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.handed_out import FOLDERS, Choice, choice, in_words
from rlhf_marl.runs.log import warnings_to
from rlhf_marl.services.journal import Journal
from rlhf_marl.sweeps.grid import plan
from rlhf_marl.sweeps.processes import cluster_of
from rlhf_marl.sweeps.results import frame, run_sweep
from rlhf_marl.training.build import Experiment, build, build_agents
from rlhf_marl.training.loop import run_training, save_results

_log = logging.getLogger("rlhf_marl")
_LESS_MEMORY = (
    "start again with fewer dialogues, or a lower generation.max_new_tokens or actor.tokens_per_pass; or use --resume "
    "where there is more"
)


def train(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    *,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    name: str = "config",
    profile: bool = False,
    report_every: int | None = None,
    builder: Callable[..., Experiment] | None = None,
) -> "Run":
    """Train the config's agents and return the run.

    Args:
        config: a Config, plain data of the same shape, or the path of a YAML file.
        run_dir: output folder; by default runs/<name>-<time>.
        resume: continue from the newest checkpoint in `run_dir`.
        name: name of a config that is not a path, for error messages and the default folder.
        profile: print the time per stage at the end.
        report_every: also write report.html every so many iterations; its page reloads itself while the run goes on.
        builder: builds the experiment from (config, name, device, journal=...). By default
            `rlhf_marl.training.build.build`, which accepts other samplers, mixers and teams (see CONTRIBUTING.md), or
            with `runtime.kind: ray` `rlhf_marl.distributed.build.build_distributed`.

    Raises:
        UsageError: one line per mistake in the config or its files.
        RunStopped: a reward model or controller failed, or memory ran out; the run directory can be resumed.
    """
    if isinstance(config, str | os.PathLike):
        name = os.fspath(config)
        config = load_config(name)
    elif not isinstance(config, Config):
        config = check_config(config, name)
    if resume and run_dir is None:
        raise UsageError("--resume: needs --run-dir, the run to continue")
    if report_every is not None and report_every < 1:
        raise UsageError(f"report_every: {report_every} given; a number of iterations, 1 or more, is needed")
    path = Path(run_dir) if run_dir is not None else Path("runs") / f"{Path(name).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    run = RunDirectory.resume(path, config) if resume else None
    if run is None:
        RunDirectory.check_free(path)  # before minutes of loading
    display = Display(config, path)
    display.loading()
    prepared = prepare_validation(config, name)  # before minutes of loading
    accelerator = _accelerator(config, path, name)
    trackers = config.tracker != "none"

    def report(iterations: int, rows: list[dict[str, Any]]) -> None:
        display.iteration(iterations, rows)
        if trackers:
            for row in rows:
                values = {f"agent_{row['agent']}/{k}": v for k, v in row.items() if isinstance(v, int | float)}
                accelerator.log(values, step=row["update"])
        refresh(iterations)
        watch.lap()  # counts for no update

    def report_validation(row: dict[str, Any]) -> None:
        display.validation(row)
        if trackers:
            values = {f"held_out/agent_{i}": mean for i, mean in enumerate(row["agents"])}
            updates = config.turns // config.actor.turns_per_update
            accelerator.log({"held_out/team": row["team"], **values}, step=updates * row["iteration"])

    journal = Journal(path / "answers")
    experiment = (builder or _builder_of(config))(config, name, accelerator.device, journal=journal)
    with closing(experiment):
        with fits_into_memory(name):
            validation = build_validation(prepared, experiment, name, journal) if prepared is not None else None
        judges = prepared.judges if prepared is not None else ()
        if run is None:
            run = RunDirectory.create(path, config, experiment.cards, judges)
        else:
            run.check_cards(experiment.cards, judges)
        display.log_to(run.log)
        if trackers:
            accelerator.init_trackers("rlhf_marl")
        with (
            run.locked(),
            warnings_to(run.log),
            _sigint(display.stopping) as interrupted,
            stopwatch(accelerator.device) as watch,
            live_report(path, report_every) as refresh,
            display,
        ):
            run.save_topology(experiment.matrix)
            refresh(0)
            with enough_memory(_LESS_MEMORY):
                finished = run_training(
                    experiment, run, report, lambda: bool(interrupted), watch, validation, report_validation
                )
            save_results(experiment, run)
            watch.lap()
    refresh_report(path)  # before the tracker, whose errors would leave a page that reloads itself
    if trackers:
        accelerator.end_training()
    validations = read_jsonl(run.validation) if prepared is not None else []
    display.summary(read_jsonl(run.metrics), read_jsonl(run.dialogues), finished, validations)
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


def sweep(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    over: Mapping[str, Sequence[Any]],
    *,
    out: str | os.PathLike[str],
    jobs: int | None = None,
    runtime: Literal["local", "ray"] = "local",
    evaluate: bool = False,
) -> pd.DataFrame:
    """Train every combination of values, as `rlhf-marl sweep`; returns a row per run and agent.

    Args:
        config: as for `train`.
        over: values by dotted key, such as {"seed": range(5), "topology.gossip_rounds": [0, 20]}.
        out: folder of the runs, sweep.json and sweep.html. Finished runs in it are not run again.
        jobs: runs at a time, each in a process of its own; by default 1, or as many as the cluster has room for.
        runtime: ray trains the runs on the Ray cluster at the config's `runtime.address`, by default one that is there
            already.
        evaluate: also evaluate every run on held-out questions.

    Returns:
        The columns are those of `rlhf_marl.sweeps.results.frame`. A run that failed has `finished` False.

    Raises:
        UsageError: a mistake in the config or the values, before anything is trained.
    """
    if runtime not in ("local", "ray"):
        raise UsageError(f"runtime: {runtime!r} given; local or ray is needed")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs: {jobs} given; a number of runs, 1 or more, is needed")
    name, content = "config", config
    if isinstance(config, str | os.PathLike):
        name = os.fspath(config)
        content = load_yaml(find_data(name, "config"))
    elif isinstance(config, Config):
        content = config.model_dump(mode="json")
    values = {key: list(given) for key, given in over.items()}
    runs = plan(content, name, values, Path(out))  # type: ignore[arg-type]
    cluster = cluster_of([run.config.runtime for run in runs], name) if runtime == "ray" else None
    run_sweep(runs, Path(out), config=name, over=values, jobs=jobs, evaluate=evaluate, runtime=cluster)
    return frame(runs)


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
        """The agents' base model as `from_pretrained` accepts it: a folder or a hub id.

        With models of their own (`agents.i.model`), the reference model.
        """
        return resolve_model(self.config.model.name, f"{self.path}/config.yaml: model.name")

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per update and agent."""
        return pd.DataFrame(read_jsonl(RunDirectory(self.path).metrics))

    @property
    def validations(self) -> pd.DataFrame:
        """One row per validation; none without a validation section."""
        file = RunDirectory(self.path).validation
        return pd.DataFrame(read_jsonl(file) if file.is_file() else [])

    @property
    def dialogues(self) -> pd.DataFrame:
        """One row per turn of each dialogue."""
        return pd.DataFrame(read_jsonl(RunDirectory(self.path).dialogues))

    def agents(self, device: str = "cpu", adapters: Choice | None = None) -> list["Agent"]:
        """Load each base model once, with the trained adapters of its agents.

        Args:
            adapters: the run's best or last ones; by default the best where held-out judges chose them in training.

        Raises:
            UsageError: the run has no adapters yet.
        """
        config = self.config
        which = choice(self.path, config, adapters)
        loaded: dict[int, Agent] = {}
        for numbers in config.by_model:
            built = build_agents(config, f"{self.path}/config.yaml", torch.device(device), numbers=numbers, start=False)
            for row, i in enumerate(numbers):
                built.adapters.load(row, self.path / FOLDERS[which] / f"agent_{i}", str(self.path))
                loaded[i] = Agent(i, LocalChat(built.sampler, slice(row, row + 1)), built.speakers[i])
        if which == "best":
            _log.warning('%s: loaded %s; adapters="last" loads the last', self.path, in_words(self.path, config, which))
        return [loaded[i] for i in sorted(loaded)]


@final
@dataclass(frozen=True)
class Agent:
    """One trained agent, ready to chat."""

    index: int
    _chat: LocalChat
    _speaker: Speaker

    @property
    def name(self) -> str:
        return self._speaker.name

    def chat(self, prompt: str | Sequence[Message], max_tokens: int = 64) -> str:
        """The most likely answer to a prompt, or to a list of {"role": ..., "content": ...} messages, in its role."""
        messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        return self._chat([self._speaker.reads(messages)], max_tokens)[0].strip()


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
