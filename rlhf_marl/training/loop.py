"""The training loop: rollout -> rewards -> critic step -> gossip -> actor step, and what it writes down."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from rlhf_marl.algorithm import critic_kind
from rlhf_marl.dialogue.player import Turn, play_turns
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.files.atomic import unwritable, write_bytes, writing_folder
from rlhf_marl.perf.stopwatch import Stopwatch
from rlhf_marl.runs.directory import RunDirectory, check_same_config
from rlhf_marl.sanitise import first_line
from rlhf_marl.training.learner import Step, critic_features, update
from rlhf_marl.training.metrics import Row, check_earlier, dialogue_rows, metric_rows
from rlhf_marl.training.system import DialogueSystem

_log = logging.getLogger("rlhf_marl")


def run_training(
    system: DialogueSystem,
    run: RunDirectory,
    report: Callable[[int, list[Row]], None],
    stop: Callable[[], bool],
    watch: Stopwatch,
) -> int:
    """Train from the run's newest checkpoint (or the start) to the config's last iteration.

    Args:
        report: receives (finished iterations, the iteration's metric rows) after each iteration.
        stop: asked after each iteration; True saves a checkpoint and ends early.
        watch: runs, and is read after each update.

    Returns:
        The number of finished iterations.

    Raises:
        RunStopped: a reward model or the controller failed, the disk is full, or nothing finite was learned for
            `stop_after_skipped` updates in a row.
    """
    config = system.config
    done = restore(system, run)
    run.forget_from(done.iterations, partial(check_earlier, config=config, iterations=done.iterations))
    run.tidy_checkpoints(done.iterations, config.keep_checkpoints)
    run.adopt(config, system.cards)
    saved = done.iterations
    while done.iterations < config.iterations:
        system.journal.begin(done.iterations)
        before = None
        if done.iterations > saved:  # an iteration changes weights turn by turn: what fails in it leaves no whole state
            before = {name: tensor.clone() for name, tensor in checkpoint_tensors(system).items()}
        try:
            turns, rows = run_iteration(system, done.iterations, done.updates, watch)
        except Exception:
            if before is not None:
                _save(system, run, done, before)
            raise
        run.append(run.dialogues, (row for turn in turns for row in dialogue_rows(turn, done.iterations)))
        run.append(run.metrics, rows)
        done = done.after(rows, config.best_metric)
        stopped = stop()
        scheduled = done.iterations % config.checkpoint_every == 0 or done.iterations == config.iterations
        if stopped or scheduled:
            done = _save(system, run, done, checkpoint_tensors(system), scheduled=scheduled)
            saved = done.iterations
        report(done.iterations, rows)
        if done.skipped >= config.stop_after_skipped:
            raise RunStopped(
                f"iteration {done.iterations}: the last {done.skipped} updates had steps that were not finite and were "
                "skipped; see actor_skipped and critic_skipped in metrics.jsonl, and start again with smaller steps or "
                "rewards"
            )
        if stopped:
            break
    return done.iterations


@final
@dataclass(frozen=True, slots=True)
class Done:
    """How far a run is; with the tensors of `checkpoint_tensors`, all that the next iteration depends on.

    Random numbers are drawn from [seed, agent, dialogue, turn], so there is no generator whose state counts.

    Attributes:
        skipped: updates in a row, up to the newest, in which some step was not finite.
        recent: the team's mean of the config's best_metric in each iteration since the last scheduled checkpoint.
    """

    iterations: int = 0
    updates: int = 0
    skipped: int = 0
    recent: tuple[float, ...] = ()

    def after(self, rows: Sequence[Row], metric: str) -> "Done":
        """One more iteration, with these metric rows."""
        return Done(
            self.iterations + 1,
            self.updates + len({row["update"] for row in rows}),
            _skipped_in_a_row(rows, self.skipped),
            (*self.recent, sum(row[metric] for row in rows) / len(rows)),
        )


def _save(
    system: DialogueSystem, run: RunDirectory, done: Done, tensors: Mapping[str, Tensor], *, scheduled: bool = False
) -> Done:
    """Write a checkpoint. Only a scheduled one may be the best: where a run was interrupted decides nothing."""
    score = sum(done.recent) / len(done.recent) if scheduled else None
    done = replace(done, recent=()) if scheduled else done
    values = {"config": system.config.model_dump(mode="json"), **asdict(done)}
    del values["iterations"]
    oldest = run.save_checkpoint(done.iterations, tensors, values, score=score, keep=system.config.keep_checkpoints)
    system.journal.forget_before(oldest)
    return done


def _skipped_in_a_row(rows: Sequence[Row], before: int) -> int:
    """Updates in a row, up to the newest, in which some agent's actor or critic step was skipped."""
    for number in sorted({row["update"] for row in rows}):
        bad = any(row["actor_skipped"] or row["critic_skipped"] for row in rows if row["update"] == number)
        before = before + 1 if bad else 0
    return before


def run_iteration(
    system: DialogueSystem, iteration: int, updates: int, watch: Stopwatch
) -> tuple[list[Turn], list[Row]]:
    """Play one batch of dialogues and learn from each transition as soon as it is complete."""
    turns: list[Turn] = []
    rows: list[Row] = []
    pending: list[Step] = []

    def watched() -> Iterator[Turn]:
        for turn in play_turns(system, iteration):
            turns.append(turn)
            yield turn

    for step in transitions(system, watched()):
        pending.append(step)
        if len(pending) == system.config.actor.turns_per_update:
            metrics = update(system, pending)
            rows += metric_rows(system, pending, metrics, iteration, updates, watch.lap())
            pending, updates = [], updates + 1
    return turns, rows


def transitions(system: DialogueSystem, turns: Iterator[Turn]) -> Iterator[Step]:
    """Complete each turn's transition (s, a, r, s', a').

    A V critic needs s' alone, which is known when the turn ends. A Q critic also needs a', the next turn's responses:
    its step is yielded one turn later, after the agents have answered (line 7 of Algorithm 1 samples before line 17
    updates).
    After the last turn the successor is the dialogue's own first state (and response), used if terminal is `restart`.
    """
    is_q = critic_kind(system.config.actor.signal) == "q"
    restart = system.config.terminal == "restart"
    first: Tensor | None = None
    waiting: tuple[Turn, Tensor] | None = None
    for turn in turns:
        features = critic_features(system, turn)
        first = features if first is None else first
        discount = 0.0 if turn.last and not restart else system.config.discount
        if not is_q:
            yield Step(turn, features, system.features(turn.next_states).unsqueeze(0), discount)
            continue
        if waiting is not None:
            yield Step(*waiting, next_features=features, discount=system.config.discount)
        waiting = (turn, features)
        if turn.last:
            yield Step(turn, features, first, discount)


def checkpoint_tensors(system: DialogueSystem) -> dict[str, Tensor]:
    """Everything that training changes: adapters, critics and both optimizers' moments."""
    tensors = {"adapters": system.adapters.parameters.detach()}
    if system.optimizer is not None:
        state = system.optimizer.state[system.adapters.parameters]
        tensors |= {f"actor_optimizer.{name}": value for name, value in state.items()}
    return tensors | {f"critic.{name}": value for name, value in system.critic.state_dict().items()}


def restore(system: DialogueSystem, run: RunDirectory) -> Done:
    """Put the newest whole checkpoint into the system.

    Raises:
        UsageError: it is of another config or version.
    """
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        if run.metrics.is_file() and run.metrics.stat().st_size > 0:
            _log.warning("%s has no checkpoint yet: training starts at the beginning", run.path)
        return Done()
    try:
        return _restored(system, *checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UsageError(f"--resume: the newest checkpoint of {run.path} is no run's: {first_line(error)}") from None


def _restored(system: DialogueSystem, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Done:
    config = system.config
    check_same_config(values["config"], config, f"its checkpoint of iteration {values['iteration']} was written")
    done = Done(values["iteration"], values["updates"], values["skipped"], tuple(values["recent"]))
    counters = (done.iterations, done.updates, done.skipped)
    if (
        any(type(number) is not int or number < 0 for number in counters)
        or done.updates != done.iterations * (config.turns // config.actor.turns_per_update)
        or not all(isinstance(score, float) for score in done.recent)
    ):
        raise ValueError("its counters do not fit together")
    parameters = system.adapters.parameters
    parameters.data.copy_(tensors["adapters"])
    if system.optimizer is not None:
        state = {name.removeprefix("actor_optimizer."): tensor for name, tensor in tensors.items()}
        system.optimizer.state[parameters] = {
            name: state[name].to(parameters.device if name != "step" else "cpu")
            for name in ("step", "exp_avg", "exp_avg_sq")
        }
    critic = {name.removeprefix("critic."): t for name, t in tensors.items() if name.startswith("critic.")}
    system.critic.load_state_dict(critic)
    return done


def save_results(system: DialogueSystem, run: RunDirectory) -> None:
    """Write the adapters in PEFT's format, those of the best checkpoint too, and the critics' weights.

    Raises:
        RunStopped: the disk refuses.
    """
    weights = system.critic.weights.detach().cpu()
    try:
        _save_adapters(system, run.adapters)
        write_bytes(run.critics, save({f"agent_{i}": agent.contiguous() for i, agent in enumerate(weights)}))
        best = run.checkpoints.best()
        if best is not None:
            last = system.adapters.parameters.detach().clone()
            system.adapters.parameters.data.copy_(best[0]["adapters"])
            _save_adapters(system, run.best)
            system.adapters.parameters.data.copy_(last)
    except (OSError, SafetensorError) as error:
        raise unwritable(run.path, error) from None


def _save_adapters(system: DialogueSystem, folder: Path) -> None:
    with writing_folder(folder) as temporary:
        for agent in range(len(system.cards)):
            system.adapters.save(agent, temporary / f"agent_{agent}", system.model.config._name_or_path)
