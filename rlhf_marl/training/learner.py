"""The learner: K critic steps, gossip of critic weights and TD errors, then one step of every actor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from rlhf_marl.algorithm.actor import leave_one_out, normalised_step
from rlhf_marl.algorithm.critic import Critic, Transition
from rlhf_marl.algorithm.masks import Masks
from rlhf_marl.algorithm.mixing import Mixer
from rlhf_marl.algorithm.objectives import OBJECTIVES
from rlhf_marl.algorithm.optimizers import AgentAdam, SignalScale
from rlhf_marl.algorithm.restraint import EntropyCoefficient, KlCoefficient
from rlhf_marl.algorithm.signals import SIGNALS, Values, actor_signal, critic_kind, td_error
from rlhf_marl.config.schema import ActorConfig
from rlhf_marl.dialogue.features import CriticFeatures
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.dialogue.speakers import Decoding
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.log_probabilities import Statistics, evaluate_responses, joined
from rlhf_marl.policy.prefix_cache import PrefixCache

Row = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Learner:
    """Learner of all agents in one process: stacked adapters over one base model, and one critic per agent.

    Attributes:
        numbers: the agents' numbers in the run.
        optimizer: for the adapters; None for the normalised step of line 17, which has no state.
        scale: multiplies Adam's step sizes; None for plain Adam.
        kl, entropy: the agents' coefficients of the KL penalty and of the entropy bonus.
        critic_steps: K of Algorithm 2.
        learned_rewards: all agents' rewards (N, B) to those that they learn from.
        turn_weights: weight of turn k, as a function of k.
        decodings: how the agents sample; log-probabilities are trained at the temperature of sampling.
        prefixes: prefix cache of the base model, for the states.
        masks: over what is gossiped; None: values are sent as they are.
        compared: number of consecutive dialogues that are compared with each other; None: all.
    """

    numbers: Sequence[int]
    actor: ActorConfig
    chat_model: ChatModel
    adapters: StackedAdapters
    optimizer: AgentAdam | None
    scale: SignalScale | None
    kl: KlCoefficient
    entropy: EntropyCoefficient
    critic: Critic
    critic_steps: int
    learned_rewards: Callable[[Tensor], Tensor]
    features: CriticFeatures
    mixer: Mixer
    turn_weights: Callable[[int], float]
    decodings: Sequence[Decoding]
    prefixes: PrefixCache
    masks: Masks | None = None
    compared: int | None = None

    def begin(self, turns: Sequence[Turn], adjacency: Tensor) -> None:
        """Set the masks for an update from these turns, or for its repetition.

        adjacency: who gossips with whom, (N, N) bool.
        """
        if self.masks is not None:
            self.masks.begin(adjacency, turns[0].dialogues[0], turns[0].number)

    def update(self, turns: Sequence[Turn]) -> list[Row]:
        """Algorithm 2 on the turns, then Algorithm 1, lines 4 to 18, with M = len(turns).

        turns: with the responses of the whole team and the rewards of this process's agents.

        Returns:
            Metrics of each agent: means over turns and dialogues unless named otherwise.
        """
        transitions = [self._transition(turn) for turn in turns]
        steps = 0 if critic_kind(self.actor.signal) == "none" else self.critic_steps
        with stage("critic"):
            critic = self.critic.update([transitions[k % len(turns)] for k in range(steps)])
        values = self._returns(transitions) if steps == 0 else [self._values(transition) for transition in transitions]
        td_errors, signals = zip(*map(self._td_error_and_signal, values), strict=True)
        with stage("update"):
            weights = [self.turn_weights(turn.number) for turn in turns]
            statistics = self._add_gradients(turns, signals, weights)
            weighted = [weight * signal for weight, signal in zip(weights, signals, strict=True)]
            gradient_norm, skipped, step_scale = self._actor_step(torch.cat(weighted, dim=-1))
        kl_coefficient, entropy_coefficient = self.kl.values, self.entropy.values
        self._adapt_restraint(turns, statistics, ~skipped)
        dead_units = self.critic.network.dead_fraction(self.critic.weights, transitions[-1].x0)
        per_turn = {
            "reward_raw": [turn.reward_raw for turn in turns],
            "reward_scaled": [turn.reward_scaled for turn in turns],
            "td_error": td_errors,
            "actor_signal": signals,
            "actor_signal_positive": [(signal > 0).float() for signal in signals],
            "entropy": [s.entropy for s in statistics],
            "kl": [s.kl for s in statistics],
            "log_probability": [s.log_probability for s in statistics],
        }
        importance = torch.cat([s.importance_weight for s in statistics], dim=-1)
        per_agent = {
            "critic_value": critic.value,
            "critic_magnitude": critic.magnitude,
            "critic_gradient_norm": critic.gradient_norm,
            "critic_projected": critic.projected,
            "critic_dead_units": dead_units,
            "gradient_norm": gradient_norm,
            "step_scale": step_scale,
            "kl_coefficient": kl_coefficient,
            "entropy_coefficient": entropy_coefficient,
            "effective_sample_share": importance.mean(-1).square() / importance.square().mean(-1),
        }
        return [
            {name: torch.stack([values[agent] for values in of]).mean().item() for name, of in per_turn.items()}
            | {name: values[agent].item() for name, values in per_agent.items()}
            | {
                "critic_skipped": int(critic.skipped[agent]),
                "actor_skipped": int(skipped[agent]),
                "disagreement_before": critic.disagreement_before.item(),
                "disagreement_after": critic.disagreement_after.item(),
            }
            for agent in range(self.adapters.n_agents)
        ]

    def value(self, turn: Turn) -> Tensor | None:
        """V(s), or Q(s, a), of every agent's critic, (N, B) on the CPU; None if the signal needs none."""
        if critic_kind(self.actor.signal) == "none":
            return None
        return self.critic.value(self._features(turn)).cpu()

    def gossiped(self, turns: Sequence[Turn]) -> int:
        """How many bytes an agent sends to each neighbour per round: critic, TD errors, and the signal's scale."""
        signal = SIGNALS[self.actor.signal]
        critic = 0 if signal.critic == "none" else self.critic.gossiped
        td_errors = sum(len(turn.states) for turn in turns) if signal.has_reward else 0
        return (critic + td_errors + (self.scale is not None)) * self.critic.weights.element_size()

    def _transition(self, turn: Turn) -> Transition:
        """The turn as the critics see it: features of (s) or, for a Q critic, of (s, a^1, ..., a^N)."""
        device = self.chat_model.model.device
        next_actions: list[list[list[int]]] = []
        if critic_kind(self.actor.signal) == "q":
            assert turn.next_samples is not None
            next_actions = [[s.for_critics for s in agent] for agent in turn.next_samples]
        return Transition(
            x0=self._features(turn),
            reward=self.learned_rewards(turn.reward_scaled.to(device)),
            next_x0=self.features(turn.next_states, *next_actions).unsqueeze(0),
            discount=torch.full((1, 1), turn.discount, device=device),
        )

    def _features(self, turn: Turn) -> Tensor:
        """x of the turn: (1, B, m)."""
        actions = turn.actions if critic_kind(self.actor.signal) == "q" else []
        return self.features(turn.states, *actions).unsqueeze(0)

    def _values(self, t: Transition) -> Values:
        """What the agents' critics say of a transition."""
        return Values(self.critic.value(t.x0), self.critic.value(t.next_x0), t.reward, t.discount)

    def _returns(self, transitions: Sequence[Transition]) -> list[Values]:
        """Without a critic: whole dialogues, whose next values are the returns that followed."""
        following = torch.zeros_like(transitions[-1].reward)
        values = []
        for t in reversed(transitions):
            values.append(Values(torch.zeros_like(t.reward), following, t.reward, t.discount))
            following = t.reward + t.discount * following
        return values[::-1]

    def _td_error_and_signal(self, values: Values) -> tuple[Tensor, Tensor]:
        """δ, and the signal with its baseline, both (N, B)."""
        signal = actor_signal(self.actor.signal, self.actor.credit, self.mixer, values)
        if self.actor.baseline == "leave_one_out":
            signal = leave_one_out(signal, self.compared or signal.shape[-1])
        return td_error(values.value, values.reward, values.next_value, values.discount), signal

    def _add_gradients(
        self, turns: Sequence[Turn], signals: Sequence[Tensor], weights: Sequence[float]
    ) -> list[Statistics]:
        """Set the adapters' gradient to minus line 16's directions, summed over turns and dialogues."""
        self.adapters.parameters.grad.zero_()  # type: ignore[union-attr]
        return [
            joined([self._statistics(turn, group, signal[group.agents], weight) for group in self.decodings])
            for turn, signal, weight in zip(turns, signals, weights, strict=True)
        ]

    def _statistics(self, turn: Turn, group: Decoding, signal: Tensor, weight: float) -> Statistics:
        """Statistics of these agents' responses; adds their gradients."""
        numbers, bonus = self.numbers[group.agents], self.entropy.values[group.agents]
        finished = torch.tensor([[sample.finished for sample in turn.samples[agent]] for agent in numbers])
        return evaluate_responses(
            self.chat_model.model,
            self.adapters,
            [turn.observations[agent] for agent in numbers],
            [turn.tokens[agent] for agent in numbers],
            temperature=group.temperature,
            pad=self.chat_model.stop_tokens[0],
            signal=weight * signal,
            kl_coefficient=weight * self.kl.values[group.agents],
            entropy_coefficient=weight * bonus if bonus.any() else None,
            agents=group.agents,
            prefixes=self.prefixes,
            old_log_probabilities=[[s.log_probabilities for s in turn.samples[agent]] for agent in numbers],
            tokens_per_pass=self.actor.tokens_per_pass,
            learned=finished if self.actor.mask_truncated else None,
            objective=partial(OBJECTIVES[self.actor.objective], clip_range=self.actor.clip_range),
        )

    def _adapt_restraint(self, turns: Sequence[Turn], statistics: Sequence[Statistics], usable: Tensor) -> None:
        """Adapt the coefficients of KL and entropy to the update's answers. usable: (N,) agents that made a step."""
        n_tokens = [sum(len(tokens) for turn in turns for tokens in turn.tokens[agent]) for agent in self.numbers]
        kl = torch.stack([s.kl.sum(-1) for s in statistics]).sum(0).cpu() / torch.tensor(n_tokens)
        self.kl.update(kl, usable)
        self.entropy.update(torch.stack([s.entropy.mean(-1) for s in statistics]).mean(0), usable)

    def _actor_step(self, signal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Line 17 or Adam for each agent. signal: (N, n_samples).

        An agent whose direction is not finite keeps its weights and optimizer state.

        Returns:
            (N,) each: gradient norm before clipping, whether the step was skipped, and the scale of its length.
        """
        parameters, gradient = self.adapters.parameters, self.adapters.parameters.grad
        assert gradient is not None
        gradient /= signal.shape[-1]
        norm = gradient.norm(dim=-1)
        skipped = ~norm.isfinite()
        scale = torch.ones_like(norm) if self.scale is None else self.scale.update(signal, ~skipped).to(norm)
        if self.optimizer is None:
            with torch.no_grad():
                parameters.copy_(normalised_step(parameters, -gradient, self.actor.step_size))
        else:
            if (most := self.actor.max_gradient_norm) is not None:
                gradient *= (most / norm.clamp_min(most)).unsqueeze(-1)
            self.optimizer.step(gradient, ~skipped, scale)
        return norm, skipped, scale
