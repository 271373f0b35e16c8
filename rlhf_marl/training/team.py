"""The Team protocol, through which the training loop uses the agents, and LocalTeam, which runs them in this process.

Agents share only the public dialogue and, through the mixer, their critics (weights and Adam's second moments), TD
errors and signal scales.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, final

import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import gossip_bytes
from rlhf_marl.config.schema import RewardConfig
from rlhf_marl.dialogue.player import Prompts, Turn, responses_of
from rlhf_marl.errors import RunStopped
from rlhf_marl.files.atomic import writing_folder
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.sampler import Sample, Sampler
from rlhf_marl.rewards import Card, RewardModel, score_all
from rlhf_marl.training.learner import Learner

Row = dict[str, Any]


class AgentsLost(RunStopped):
    """Agents are gone, and with them the state that they had since the last checkpoint."""


class Team(Protocol):
    """N agents that answer, score their own answers and learn, in this or other processes."""

    @property
    def reward_models(self) -> Sequence[str]:
        """Name of each agent's reward model, N."""
        ...

    def respond(self, prompts: Prompts, dialogues: Sequence[int], turn: int) -> list[list[Sample]]:
        """Every agent answers its prompt of every dialogue: [agent][dialogue].

        Args:
            prompts: token ids, [agent][dialogue].
            dialogues: the dialogues' numbers within the run.
        """
        ...

    def score(self, turn: Turn) -> Turn:
        """The turn with each agent's rewards, and its critic's value before the update.

        The controller has merged the responses, so a reward may score the team's answer.
        """
        ...

    def learn(self, turns: Sequence[Turn]) -> Sequence[Row | None]:
        """One update from scored turns whose successors are known; metrics of each agent, None for those lost."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """A copy of everything that learning changes; names begin with `agent_<i>.`."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def save_adapters(self, folder: Path) -> None:
        """Write agent_<i>/ of every agent in PEFT's format; the folder is written atomically."""
        ...


@final
class LocalTeam:
    """Agents in this process, stacked on one base model: all of the team, or a worker's share of it."""

    def __init__(
        self,
        sampler: Sampler,
        learner: Learner,
        cards: Sequence[Card],
        scorers: Sequence[RewardModel],
        *,
        numbers: Sequence[int],
        reward: RewardConfig,
        adjacency: Tensor,
        gossip_rounds: int,
        seed: int,
    ) -> None:
        """numbers: the agents' numbers in the run; cards and scorers are theirs alone, in that order."""
        self._sampler, self.learner, self.numbers = sampler, learner, numbers
        self._cards, self._scorers = cards, scorers
        self._reward, self._adjacency, self._gossip_rounds = reward, adjacency, gossip_rounds
        self._seed = seed

    @property
    def reward_models(self) -> list[str]:
        return [card.name for card in self._cards]

    def respond(self, prompts: Prompts, dialogues: Sequence[int], turn: int) -> list[list[Sample]]:
        return responses_of(
            self._sampler,
            [prompts[agent] for agent in self.numbers],
            dialogues,
            turn,
            seed=self._seed,
            decodings=self.learner.decodings,
            numbers=self.numbers,
        )

    def score(self, turn: Turn) -> Turn:
        own = [turn.texts[agent] for agent in self.numbers]
        team = [[merged.aggregate for merged in turn.merged]] * len(self.numbers)
        with stage("score"):
            if self._reward.of == "both":
                weight = self._reward.team_weight
                rewards = (1 - weight) * self._scores(turn, own) + weight * self._scores(turn, team)
            else:
                rewards = self._scores(turn, team if self._reward.of == "team" else own)
        raw, scaled = rewards.unbind()
        samples = [turn.samples[agent] for agent in self.numbers]
        unfinished = torch.tensor([[not sample.finished for sample in agent] for agent in samples])
        lengths = torch.tensor([[len(sample.tokens) for sample in agent] for agent in samples])
        scaled = scaled - self._reward.missing_end_penalty * unfinished - self._reward.length_penalty * lengths
        return replace(turn, reward_raw=raw, reward_scaled=scaled, value=self.learner.value(turn))

    def _scores(self, turn: Turn, texts: Sequence[Sequence[str]]) -> Tensor:
        """Raw and scaled scores of texts[agent][dialogue] by each agent's reward model: (2, N, B)."""
        scores = [
            score_all(
                card,
                scorer,
                turn.conversations if card.reads_dialogue else turn.prompts,
                of_agent,
                agent=agent,
                rows=turn.rows,
            )
            for agent, card, scorer, of_agent in zip(self.numbers, self._cards, self._scorers, texts, strict=True)
        ]
        return torch.tensor(scores).transpose(0, 1)

    def learn(self, turns: Sequence[Turn]) -> list[Row]:
        sent = gossip_bytes(self._adjacency, self.learner.gossiped(turns), self._gossip_rounds)
        self.learner.begin(turns, self._adjacency)
        return [row | {"gossip_bytes": sent} for row in self.learner.update(turns)]

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for row, agent in enumerate(self.numbers):
            parts = {"adapter": self.learner.adapters.parameters.detach()[row]}
            if self.learner.optimizer is not None:
                parts |= _prefixed("actor_optimizer", self.learner.optimizer.state_dict(row))
            if self.learner.scale is not None:
                parts |= _prefixed("signal_scale", self.learner.scale.state_dict(row))
            parts |= _prefixed("kl", self.learner.kl.state_dict(row))
            parts |= _prefixed("entropy", self.learner.entropy.state_dict(row))
            parts |= _prefixed("critic", self.learner.critic.state_dict(row))
            state |= _prefixed(f"agent_{agent}", parts)
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for row, agent in enumerate(self.numbers):
            own = _without_prefix(f"agent_{agent}", state)
            self.learner.adapters.parameters.data[row].copy_(own["adapter"])
            if self.learner.optimizer is not None:
                self.learner.optimizer.load_state_dict(row, _without_prefix("actor_optimizer", own))
            if self.learner.scale is not None:
                self.learner.scale.load_state_dict(row, _without_prefix("signal_scale", own))
            self.learner.kl.load_state_dict(row, _without_prefix("kl", own))
            self.learner.entropy.load_state_dict(row, _without_prefix("entropy", own))
            self.learner.critic.load_state_dict(row, _without_prefix("critic", own))

    def save_adapters(self, folder: Path) -> None:
        with writing_folder(folder) as temporary:
            self.write_adapters(temporary)

    def write_adapters(self, folder: Path) -> None:
        """Write agent_<i>/ of this process's agents into a folder."""
        for row, agent in enumerate(self.numbers):
            base = self.learner.chat_model.model.config._name_or_path
            self.learner.adapters.save(row, folder / f"agent_{agent}", base)


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def _without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}
