"""The training loop: rollout -> rewards -> critic step -> gossip -> actor step, and what it writes down."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rlhf_marl.algorithm import critic_kind, gossip_bytes
from rlhf_marl.dialogue.rollout import Turn, play_turns
from rlhf_marl.dialogue.system import DialogueSystem
from rlhf_marl.dialogue.update import Step, UpdateMetrics, critic_features, update
from rlhf_marl.errors import RunStopped
from rlhf_marl.run_directory import RunDirectory
from rlhf_marl.stopwatch import Stopwatch

Row = dict[str, Any]


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
    iteration, updates = restore(system, run)
    run.forget_from(iteration)
    skipped = 0
    while iteration < system.config.iterations:
        turns, rows = run_iteration(system, iteration, updates, watch)
        updates += len(rows) // len(system.cards)
        run.append(run.dialogues, (row for turn in turns for row in dialogue_rows(turn, iteration)))
        run.append(run.metrics, rows)
        iteration += 1
        stopped = stop()
        if stopped or iteration % system.config.checkpoint_every == 0 or iteration == system.config.iterations:
            run.save_checkpoint(iteration, checkpoint_tensors(system), {"updates": updates})
        report(iteration, rows)
        skipped = _skipped_in_a_row(rows, skipped)
        if skipped >= system.config.stop_after_skipped:
            raise RunStopped(
                f"iteration {iteration}: the last {skipped} updates had steps that were not finite and were skipped; "
                "see actor_skipped and critic_skipped in metrics.jsonl, and start again with smaller steps or rewards"
            )
        if stopped:
            break
    return iteration


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


def metric_rows(
    system: DialogueSystem,
    steps: Sequence[Step],
    metrics: UpdateMetrics,
    iteration: int,
    updates: int,
    stages: dict[str, float],
) -> list[Row]:
    """One flat row per agent; means over the update's turns and dialogues unless the name says otherwise.

    `stages` is the wall time of each stage, in seconds.
    """
    turns = [step.turn for step in steps]
    disagreement = (metrics.critic.disagreement_before.item(), metrics.critic.disagreement_after.item())
    seconds = sum(stages.values())
    all_tokens = sum(len(r.tokens) for turn in turns for agent in turn.responses for r in agent)
    n_values = system.critic.network.n_params + sum(len(turn.states) for turn in turns)
    sent = gossip_bytes(system.topology.adjacency, n_values, system.config.topology.gossip_rounds)
    rows = []
    for agent in range(len(system.cards)):
        responses = [r for turn in turns for r in turn.responses[agent]]

        def mean(tensors: Sequence[Tensor], agent: int = agent) -> float:
            return torch.stack([tensor[agent] for tensor in tensors]).mean().item()

        rows.append(
            {
                "update": updates,
                "iteration": iteration,
                "turn": turns[-1].number,
                "agent": agent,
                "reward_model": system.cards[agent].name,
                "reward_raw": mean([turn.reward_raw for turn in turns]),
                "reward_scaled": mean([turn.reward_scaled for turn in turns]),
                "td_error": mean(metrics.td_error),
                "actor_signal": mean(metrics.signal),
                "actor_signal_positive": mean([(signal > 0).float() for signal in metrics.signal]),
                "critic_value": metrics.critic.value[agent].item(),
                "critic_gradient_norm": metrics.critic.gradient_norm[agent].item(),
                "critic_projected": metrics.critic.projected[agent].item(),
                "critic_dead_units": metrics.dead_units[agent].item(),
                "critic_skipped": int(metrics.critic.skipped[agent]),
                "disagreement_before": disagreement[0],
                "disagreement_after": disagreement[1],
                "entropy": mean([s.entropy for s in metrics.statistics]),
                "kl": mean([s.kl for s in metrics.statistics]),
                "log_probability": mean([s.log_probability for s in metrics.statistics]),
                "response_tokens": sum(len(r.tokens) for r in responses) / len(responses),
                "truncated": sum(r.truncated for r in responses) / len(responses),
                "gradient_norm": metrics.gradient_norm[agent].item(),
                "actor_skipped": int(metrics.skipped[agent]),
                "controller_fallbacks": sum(map(sum, (turn.fallbacks for turn in turns))),
                "gossip_bytes": sent,
                "tokens_per_second": round(all_tokens / seconds, 3),
                "seconds": round(seconds, 4),
                "stage_seconds": {name: round(value, 4) for name, value in stages.items()},
            }
        )
    return rows


def dialogue_rows(turn: Turn, iteration: int) -> Iterator[Row]:
    """One row per dialogue: what was asked, answered, scored and decided in this turn."""
    for b, dialogue in enumerate(turn.dialogues):
        yield {
            "iteration": iteration,
            "dialogue": dialogue,
            "turn": turn.number,
            "question": turn.questions[b],
            "prompt": turn.prompts[b],
            "responses": [asdict(agent[b]) for agent in turn.responses],
            "reward_raw": turn.reward_raw[:, b].tolist(),
            "reward_scaled": turn.reward_scaled[:, b].tolist(),
            "aggregate": turn.aggregates[b],
            "next_prompt": turn.next_prompts[b],
            "controller_fallback": turn.fallbacks[b],
        }


def checkpoint_tensors(system: DialogueSystem) -> dict[str, Tensor]:
    """Everything that training changes: adapters, critics and both optimizers' moments."""
    tensors = {"adapters": system.adapters.parameters.detach()}
    if system.optimizer is not None:
        state = system.optimizer.state[system.adapters.parameters]
        tensors |= {f"actor_optimizer.{name}": value for name, value in state.items()}
    return tensors | {f"critic.{name}": value for name, value in system.critic.state_dict().items()}


def restore(system: DialogueSystem, run: RunDirectory) -> tuple[int, int]:
    """Put the newest checkpoint into the system: (finished iterations, updates), (0, 0) if there is none."""
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        return 0, 0
    tensors, values = checkpoint
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
    return values["iteration"], values["updates"]


def save_results(system: DialogueSystem, run: RunDirectory) -> None:
    """Write the adapters in PEFT's format and the critics' weights."""
    from safetensors.torch import save_file

    for agent in range(len(system.cards)):
        system.adapters.save(agent, run.adapters / f"agent_{agent}", system.model.config._name_or_path)
    weights = system.critic.weights.detach().cpu()
    save_file({f"agent_{agent}": weights[agent].contiguous() for agent in range(len(weights))}, run.critics)
