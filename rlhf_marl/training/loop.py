"""The training loop: rollout -> rewards -> critic step -> gossip -> actor step, with logs and checkpoints."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, final

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from rlhf_marl.algorithm.signals import critic_kind
from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Dialogue, Turn
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.files.atomic import unwritable, write_bytes
from rlhf_marl.perf.stopwatch import Stopwatch, stage
from rlhf_marl.runs.checkpoints import WritesItself
from rlhf_marl.runs.directory import RunDirectory, check_same_config
from rlhf_marl.runs.validations import Validated, early_stop
from rlhf_marl.sanitise import first_line
from rlhf_marl.training.build import Experiment
from rlhf_marl.training.metrics import Row, check_earlier, dialogue_rows, metric_rows
from rlhf_marl.training.team import AgentsLost

_log = logging.getLogger("rlhf_marl")


def run_training(
    experiment: Experiment,
    run: RunDirectory,
    report: Callable[[int, list[Row]], None],
    stop: Callable[[], bool],
    watch: Stopwatch,
    validate: Callable[[], Row] | None = None,
    report_validation: Callable[[Row], None] = lambda row: None,
) -> int:
    """Train from the run's newest checkpoint (or the start) to the config's last iteration, or to an early stop.

    Args:
        report: receives (finished iterations, the iteration's metric rows) after each iteration.
        stop: called after each iteration and validation; True saves a checkpoint and ends the loop.
        watch: a running stopwatch, read after each update.
        validate: the team's present scores on the held-out questions; see rlhf_marl/runs/validations.py. Called before
            the first and after the last iteration, and as often as the config says. None: no validation.
        report_validation: receives each finished line of validation.jsonl.

    Returns:
        The number of finished iterations.

    Raises:
        RunStopped: a reward model or the controller failed, the disk is full, or `stop_after_skipped` updates in a row
            had a skipped step.
    """
    config = experiment.config
    done = restore(experiment, run)
    validated = {validation.iteration: validation.team for validation in done.validations}
    check = partial(check_earlier, config=config, iterations=done.iterations, validated=validated)
    run.forget_from(done.iterations, check, validated=validated)
    run.tidy_checkpoints(done.iterations, config.keep_checkpoints)
    run.adopt(config, experiment.cards)
    saved = done.iterations
    while True:
        if validate is not None and done.awaits_validation(config):
            # In the journal of the next iteration, so that a validation that failed is repeated with its answers.
            experiment.journal.begin(done.iterations)
            try:
                with stage("validate"):
                    scores = validate()
            except Exception:
                if done.iterations > saved:
                    _save(experiment, run, done, experiment.team.state_dict())
                raise
            done, row = done.validated(scores, config)
            run.append(run.validation, [row])
            done = _save(experiment, run, done, experiment.team.state_dict(), scheduled=_scheduled(done, config))
            saved = done.iterations
            report_validation(row)
            watch.lap()
            if stop():
                break
        if done.is_over(config):
            break
        experiment.journal.begin(done.iterations)
        before = None
        if done.iterations > saved:  # weights change within an iteration: keep the state to save if it fails
            before = experiment.team.state_dict()
        try:
            turns, rows = run_iteration(experiment, done.iterations, done.updates, watch)
        except Exception:
            if before is not None:
                with suppress(AgentsLost):  # then the last checkpoint is what there is
                    _save(experiment, run, done, before)
            raise
        run.append(run.dialogues, (row for turn in turns for row in dialogue_rows(turn, done.iterations)))
        run.append(run.metrics, rows)
        done = done.after(rows, config)
        stopped = stop()
        scheduled = _scheduled(done, config) and not (validate is not None and done.awaits_validation(config))
        if stopped or scheduled:
            done = _save(experiment, run, done, experiment.team.state_dict(), scheduled=scheduled)
            saved = done.iterations
        report(done.iterations, rows)
        if done.skipped >= config.stop_after_skipped:
            raise RunStopped(
                f"iteration {done.iterations}: the last {done.skipped} updates had steps that were not finite and were "
                "skipped; see actor_skipped and critic_skipped in metrics.jsonl, and start again with smaller step "
                "sizes or rewards"
            )
        if stopped:
            break
    return done.iterations


@final
@dataclass(frozen=True, slots=True)
class Done:
    """Progress of a run. With the team's state, it determines the next iteration.

    Random numbers are seeded by [seed, agent, dialogue, turn], so there is no generator state to save.

    Attributes:
        skipped: consecutive updates, up to the newest, in which some step was not finite.
        recent: the team's mean of the config's best_metric, if that is a reward, in each iteration since the last
            scheduled checkpoint.
        rewards: with validations, the team's mean scaled reward in each iteration since the last one.
        validations: all so far.
    """

    iterations: int = 0
    updates: int = 0
    skipped: int = 0
    recent: tuple[float, ...] = ()
    rewards: tuple[float, ...] = ()
    validations: tuple[Validated, ...] = ()

    def after(self, rows: Sequence[Row], config: Config) -> "Done":
        """The progress after one more iteration with these metric rows."""
        recent, rewards, metric = self.recent, self.rewards, config.best_metric
        if metric != "held_out":
            recent = (*recent, _mean([row[metric] for row in rows]))
        if config.validation is not None:
            rewards = (*rewards, _mean([row["reward_scaled"] for row in rows]))
        return Done(
            self.iterations + 1,
            self.updates + len({row["update"] for row in rows}),
            _skipped_in_a_row(rows, self.skipped),
            recent,
            rewards,
            self.validations,
        )

    def awaits_validation(self, config: Config) -> bool:
        """Whether a validation is due now and has not been made."""
        if config.validation is None or any(made.iteration == self.iterations for made in self.validations):
            return False
        return self.iterations % config.validation.every == 0 or self.iterations == config.iterations

    def validated(self, scores: Row, config: Config) -> tuple["Done", Row]:
        """The progress after a validation with these scores, and its line of validation.jsonl."""
        reward = _mean(self.rewards) if self.rewards else None
        made = Validated(self.iterations, scores["team"], 0.0 if reward is None else reward)
        reason = None
        if config.validation is not None and self.iterations < config.iterations:
            reason = early_stop((*self.validations, made), config.validation.patience)
        made = replace(made, ended=reason is not None)
        row = {"iteration": self.iterations, **scores, "training_reward": reward, "early_stop": reason}
        return replace(self, rewards=(), validations=(*self.validations, made)), row

    def is_over(self, config: Config) -> bool:
        """Whether all iterations are done, or the newest validation ended training early.

        A resumed run goes on if it was over because all iterations were done and there are more now, or if it has more
        patience. Less patience counts from its next validation on.
        """
        if self.iterations >= config.iterations:
            return True
        if config.validation is None or not any(v.ended and v.iteration == self.iterations for v in self.validations):
            return False
        return early_stop(self.validations, config.validation.patience) is not None

    def score(self, metric: str, *, scheduled: bool) -> float | None:
        """The value of `best_metric` for a checkpoint written now; None if it has none.

        Only a scheduled one has a mean reward, so that interruptions do not affect which one is the best.
        """
        if metric == "held_out":
            return next((made.team for made in self.validations if made.iteration == self.iterations), None)
        return _mean(self.recent) if scheduled and self.recent else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _scheduled(done: Done, config: Config) -> bool:
    """Whether a checkpoint is due after this iteration."""
    return done.iterations % config.checkpoint_every == 0 or done.iterations == config.iterations


def _save(
    experiment: Experiment, run: RunDirectory, done: Done, tensors: Mapping[str, Tensor], *, scheduled: bool = False
) -> Done:
    """Write a checkpoint."""
    score = done.score(experiment.config.best_metric, scheduled=scheduled)
    done = replace(done, recent=()) if scheduled else done
    values = {"config": experiment.config.model_dump(mode="json"), **asdict(done)}
    del values["iterations"]
    oldest = run.save_checkpoint(done.iterations, tensors, values, score=score, keep=experiment.config.keep_checkpoints)
    experiment.journal.forget_before(oldest)
    return done


def _skipped_in_a_row(rows: Sequence[Row], before: int) -> int:
    """Consecutive updates, up to the newest, in which some agent's actor or critic step was skipped."""
    for number in sorted({row["update"] for row in rows}):
        bad = any(row.get("actor_skipped") or row.get("critic_skipped") for row in rows if row["update"] == number)
        before = before + 1 if bad else 0
    return before


def run_iteration(
    experiment: Experiment, iteration: int, updates: int, watch: Stopwatch
) -> tuple[list[Turn], list[Row]]:
    """Play one batch of dialogues and learn from each turn as soon as its successor is known."""
    config, team = experiment.config, experiment.team
    turns: list[Turn] = []
    rows: list[Row] = []
    pending: list[Turn] = []

    def scored() -> Iterator[Turn]:
        for turn in experiment.player.play(first_prompts(experiment, iteration)):
            turns.append(team.score(turn))
            yield turns[-1]

    for turn in with_successors(scored(), experiment):
        pending.append(turn)
        if len(pending) == config.actor.turns_per_update:
            learned = team.learn(pending)
            rows += metric_rows(
                learned,
                pending,
                team.reward_models,
                config,
                update=updates,
                iteration=iteration,
                stages=watch.lap(),
            )
            pending, updates = [], updates + 1
    return turns, rows


def first_prompts(experiment: Experiment, iteration: int) -> list[Dialogue]:
    """The iteration's dialogues before their first turn."""
    config, questions = experiment.config, experiment.questions
    dialogues = []
    for number in range(iteration * config.dialogues, (iteration + 1) * config.dialogues):
        question = questions.index(number // config.dialogues_per_question)
        messages, row = [*questions.conversations[question]], questions.rows[question]
        dialogues.append(Dialogue(number, question, messages, config.turns, row=row))
    return dialogues


def with_successors(turns: Iterator[Turn], experiment: Experiment) -> Iterator[Turn]:
    """Complete each turn's transition (s, a, r, s', a').

    A V critic needs only s', which is known when the turn ends. A Q critic also needs a', the next turn's responses, so
    its turns are yielded one turn later, after the agents have answered (Algorithm 1 samples in line 7, before the
    update in line 17). After the last turn the successor is the dialogue's first state (and response), used if
    terminal is `restart`.
    """
    config = experiment.config
    is_q = critic_kind(config.actor.signal) == "q"
    first: Turn | None = None
    waiting: Turn | None = None
    for turn in turns:
        first = first or turn
        turn = replace(turn, discount=0.0 if turn.last and config.terminal != "restart" else config.discount)
        if not is_q:
            yield turn
            continue
        if waiting is not None:
            yield replace(waiting, next_samples=turn.samples)
        waiting = turn
        if turn.last:
            yield replace(turn, next_samples=first.samples)


def restore(experiment: Experiment, run: RunDirectory) -> Done:
    """Load the newest intact checkpoint into the team.

    Raises:
        UsageError: the checkpoint belongs to another config or version.
    """
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        if run.metrics.is_file() and run.metrics.stat().st_size > 0:
            _log.warning("%s has no checkpoint yet: training starts from the beginning", run.path)
        return Done()
    try:
        return _restored(experiment, *checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"--resume: the newest checkpoint of {run.path} is invalid: {first_line(error)}") from None


def _restored(experiment: Experiment, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Done:
    config = experiment.config
    before = Config.model_validate(values["config"]).model_dump(mode="json")  # with the defaults of later keys
    check_same_config(before, config, f"its checkpoint of iteration {values['iteration']} was written")
    done = Done(
        values["iteration"],
        values["updates"],
        values["skipped"],
        tuple(values["recent"]),
        tuple(values["rewards"]),
        tuple(Validated.of(row) for row in values["validations"]),
    )
    counters = (done.iterations, done.updates, done.skipped, *(made.iteration for made in done.validations))
    if (
        any(type(number) is not int or number < 0 for number in counters)
        or done.updates != done.iterations * (config.turns // config.actor.turns_per_update)
        or not all(isinstance(score, float) for score in (*done.recent, *done.rewards))
        or any(made.iteration > done.iterations for made in done.validations)
    ):
        raise ValueError("its counters are inconsistent")
    experiment.team.load_state_dict(tensors)
    return done


def save_results(experiment: Experiment, run: RunDirectory) -> None:
    """Write the newest adapters in PEFT's format, the critics' weights, and the best adapters, last of all.

    Raises:
        RunStopped: writing failed.
    """
    team = experiment.team
    last = team.state_dict()
    try:
        team.save_adapters(run.adapters)  # first: lost agents come back for it, from the last checkpoint
        if not isinstance(last, WritesItself):  # else the critics stay with their agents, in the checkpoints
            critics = {
                name.removesuffix(".critic.weights"): weights.cpu().contiguous()
                for name, weights in last.items()
                if name.endswith(".critic.weights")
            }
            write_bytes(run.critics, save(critics))
        best = run.checkpoints.best()
        if best is not None:
            team.load_state_dict(best[0])
            team.save_adapters(run.best)
            team.load_state_dict(last)
    except (OSError, SafetensorError) as error:
        raise unwritable(run.path, error) from None
