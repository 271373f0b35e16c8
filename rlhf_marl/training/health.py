"""Warnings for metrics that usually indicate a failing run."""

from collections.abc import Iterator
from typing import Any

from rlhf_marl.config import Config
from rlhf_marl.dialogue.speakers import agents_in_words

_ENOUGH = 8  # samples: this many are unlikely to share a sign by chance


def warnings_of(row: dict[str, Any], config: Config) -> Iterator[tuple[str, str]]:
    """(kind, message) for each symptom in one metrics row. A team may omit metrics."""
    if absent := [agent for agent in range(len(config.agents)) if agent not in row.get("present", [agent])]:
        yield "absent", f"learned without {agents_in_words(absent)}, lost for a time"
    if row.get("actor_skipped"):
        yield "actor_skipped", "the policy gradient was not finite; the actor step was skipped"
    if row.get("critic_skipped"):
        yield "critic_skipped", "a critic step was not finite and was skipped"
    if row.get("critic_dead_units", 0.0) > 0.95:
        yield (
            "dead_critic",
            "nearly all units of the critic's last layer are dead; lower critic.step_size or critic.radius",
        )
    if (size := row.get("critic_magnitude", 0.0)) > 100:
        yield "critic_scale", f"the mean |critic value| is {size:.0f}: rescale the reward card or lower critic.radius"
    if row.get("critic_projected") == 1.0:
        yield "projected", "every critic step was projected back onto the ball; a larger critic.radius may help"
    samples = config.dialogues * config.actor.turns_per_update
    positive = row.get("actor_signal_positive")
    if positive == 0.0 and row.get("actor_signal") == 0.0:
        yield "no_signal", "all actor signals are zero, as when all answers get the same reward: nothing is learned"
    elif positive in (0.0, 1.0) and samples >= _ENOUGH:
        yield (
            "one_sided_signal",
            "all actor signals have the same sign: centre the rewards with the card's offset, or use actor.baseline "
            "leave_one_out",
        )
    if row.get("entropy", 1.0) < 0.3:
        yield (
            "entropy",
            "policy entropy is below 0.3 nats per token: the policy has collapsed; try actor.entropy_band",
        )
    if row.get("kl", 0.0) / row["response_tokens"] > 2.0:
        yield "kl", "KL to the base model is above 2 nats per token: likely reward hacking; set actor.kl_target"
    if row["controller_fallbacks"] >= config.dialogues:
        yield (
            "fallbacks",
            "the controller gave no usable output for a whole batch; see controller_fallback in dialogues.jsonl",
        )
