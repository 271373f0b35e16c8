"""One worker: some of the team's agents, with their base model, adapters, critics and reward models."""

import logging
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, final

import ray
import torch
from ray.exceptions import RayError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_marl.algorithm.masks import Pair
from rlhf_marl.algorithm.mixing import gossip_bytes
from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Prompts, Turn
from rlhf_marl.distributed.exchange import Key, Mailbox, Message, NeighbourMixer, View
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.runs.checkpoints import agent_file
from rlhf_marl.services.journal import Journal
from rlhf_marl.training.build import build_team, build_topology, gossip_rounds
from rlhf_marl.training.team import LocalTeam, Row

_PACKAGES = ("rlhf-marl", "torch", "transformers", "ray")
Post = Callable[..., Any]


@final
@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker tells the driver once it has loaded its models.

    Attributes:
        names: of its agents' reward models.
        cards: the reward cards as plain data; none if rewards are private.
        versions: of Python and the packages that matter.
        warnings: logged while loading.
    """

    names: list[str]
    cards: list[dict[str, Any]]
    versions: dict[str, str]
    warnings: list[str]
    host: str
    pid: int


@final
@dataclass(frozen=True, slots=True)
class Learned:
    """One update of a worker's agents.

    Attributes:
        rows: metrics of each agent; the disagreements are over the worker's agents.
        messages: what the worker sent.
    """

    rows: list[Row]
    messages: list[Message]


_mail = ray.method(concurrency_group="mail")


class Worker:
    """Becomes a Ray actor. Methods of the group `mail` run in a thread of their own, so that a worker that computes or
    waits still receives messages; all other methods run one after another."""

    def __init__(self, config: dict[str, Any], where: str, worker: int, numbers: Sequence[int], folder: str) -> None:
        """
        Args:
            config: as plain data, already checked.
            numbers: of the agents that live here.
            folder: working folder of the driver, from which files are found.
        """
        self._config, self._where = Config.model_validate(config), where
        self._worker, self._numbers = worker, list(numbers)
        self._mailbox = Mailbox()
        self._peers: dict[int, Post] = {}
        self._rewards: dict[int, tuple[Tensor, Tensor]] = {}  # by turn of the dialogues under way
        self._before: tuple[int, dict[str, Tensor]] = (-1, {})  # the state before an update, to repeat it
        self._learning = False  # or an update was given up, and not repeated yet
        self._snapshots: dict[int, dict[str, Tensor]] = {}
        with suppress(OSError):  # on another host the folder may not exist
            os.chdir(folder)

    def load(self, run: str | None, columns: Collection[str], mask_keys: Mapping[Pair, bytes] | None) -> Loaded:
        """Load everything.

        Args:
            run: the run directory.
            columns: of the questions, for reward models that read them.
            mask_keys: of the own agents and their neighbours.

        Raises:
            UsageError: a model, card or reward model is missing or unusable here.
        """
        config, runtime = self._config, self._config.runtime
        torch.set_num_threads(runtime.cpus_per_worker)
        device = torch.device("cuda" if runtime.gpus_per_worker else "cpu")
        records = _Records()
        logging.getLogger("rlhf_marl").addHandler(records)
        try:
            with fits_into_memory(self._where):
                self._mixer = NeighbourMixer(
                    self._worker,
                    self._numbers,
                    gossip_rounds(config),
                    mailbox=self._mailbox,
                    send=self._send,
                    timeout=runtime.round_timeout,
                )
                answers = None if run is None else Path(run) / "answers" / f"agent_{self._numbers[0]}"
                self._journal = Journal(answers)
                self._team, _, cards = build_team(
                    LocalTeam,
                    config,
                    self._where,
                    device,
                    self._journal,
                    columns=columns,
                    graph=build_topology(config, self._where)[0],
                    mixer=self._mixer,
                    mean=self._mixer.mean,
                    mask_keys=mask_keys,
                    numbers=self._numbers,
                )
        finally:
            logging.getLogger("rlhf_marl").removeHandler(records)
        return Loaded(
            names=self._team.reward_models,
            cards=[] if runtime.private_rewards else [card.model_dump(mode="json") for card in cards],
            versions={"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES},
            warnings=records.messages,
            host=platform.node(),
            pid=os.getpid(),
        )

    def meet(self, peers: Mapping[int, Any]) -> None:
        """Learn the handles of the other workers."""
        self._peers = {worker: handle.deliver.remote for worker, handle in peers.items()}

    @_mail
    def deliver(self, attempt: int, key: Key, sender: int, content: Any) -> None:
        """Receive a message from another worker."""
        self._mailbox.put(attempt, key, sender, content)

    @_mail
    def call_off(self, attempt: int) -> None:
        """Give up waiting for messages of this attempt."""
        self._mailbox.call_off(attempt)

    def begin(self, iteration: int) -> None:
        """Start an iteration."""
        self._journal.begin(iteration)

    def forget_before(self, iteration: int) -> None:
        """Remove service answers of earlier iterations."""
        self._journal.forget_before(iteration)

    def respond(self, prompts: Prompts, dialogues: Sequence[int], turn: int) -> list[list[Sample]]:
        """The own agents' answers, [agent][dialogue], to their prompts among those of the whole team."""
        return self._team.respond(prompts, dialogues, turn)

    def score(self, turn: Turn) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Raw and scaled rewards and critic values of the own agents: (n_agents, B) each; None if they are private."""
        scored = self._team.score(turn)
        self._rewards[turn.number] = scored.reward_raw, scored.reward_scaled
        if self._config.runtime.private_rewards:
            return None, None, None
        return scored.reward_raw, scored.reward_scaled, scored.value

    def learn(self, update: int, view: View, turns: Sequence[Turn]) -> Learned:
        """One update with those in the view. Called again with the same number, it starts from the same state.

        Raises:
            NeighboursSilent: messages of neighbours did not come.
        """
        if self._before[0] == update:
            self._team.load_state_dict(self._before[1])
        else:
            self._before = update, self._team.state_dict()
        self._learning = True
        learner = self._team.learner
        own = []
        for turn in turns:
            if turn.number not in self._rewards:  # this worker has only just taken a lost one's place
                self.score(turn)
            raw, scaled = self._rewards[turn.number]
            own.append(replace(turn, reward_raw=raw, reward_scaled=scaled))
        self._mixer.begin(view)
        learner.begin(turns, view.adjacency)
        with stopwatch(learner.chat_model.model.device) as watch:
            rows = learner.update(own)
            seconds = {name: round(value, 4) for name, value in watch.lap().items() if value}
        self._learning = False
        computed = gossip_bytes(view.adjacency, learner.gossiped(turns), gossip_rounds(self._config))
        return Learned([row | {"gossip_bytes": computed, "worker_seconds": seconds} for row in rows], self._mixer.log)

    def snapshot(self, number: int) -> None:
        """Copy the own agents' state; the newest two copies are kept."""
        self._snapshots[number] = self._team.state_dict()
        for old in sorted(self._snapshots)[:-2]:
            del self._snapshots[old]

    def fetch(self, snapshot: int) -> dict[str, Tensor]:
        """A copy of the own agents' state; the state itself in a worker that has come back since it was made."""
        return self._snapshots[snapshot] if snapshot in self._snapshots else self._team.state_dict()

    def restore(self, snapshot: int) -> None:
        """Go back to a copy."""
        self._team.load_state_dict(self.fetch(snapshot))

    def load_state_dict(self, state: Mapping[str, Tensor] | str) -> None:
        """Restore the own agents' state, given or in a checkpoint's folder.

        An agent that was lost before its first checkpoint has no file there, and keeps its state.
        """
        if isinstance(state, str):
            files = [agent_file(Path(state), agent) for agent in self._numbers]
            own = {name: tensor for file in files if file.exists() for name, tensor in load_file(file).items()}
            state = self._team.state_dict() | own
        self._team.load_state_dict(state)

    def write_state(self, snapshot: int, folder: str) -> None:
        """Write agent_<i>/state.safetensors of the own agents."""
        for agent in self._numbers:
            file = agent_file(Path(folder), agent)
            file.parent.mkdir(exist_ok=True)  # a lost worker may have begun it
            own = {name: t for name, t in self.fetch(snapshot).items() if name.startswith(f"agent_{agent}.")}
            save_file(own, file)

    @_mail
    def critic(self) -> dict[str, Tensor]:
        """The critic, averaged over the own agents, for a neighbour that comes back.

        Without Adam's first moment, which is not gossiped: the agents' recent rewards could be solved from it.
        """
        state = self._before[1] if self._learning else self._team.state_dict()
        critic = _mean_critic([_critic_of(state, agent) for agent in self._numbers])
        return {name: tensor for name, tensor in critic.items() if name != "adam.exp_avg"}

    def rejoin(self, state: Mapping[str, Tensor] | str | None, peers: Sequence[Any]) -> None:
        """Take a lost worker's place: the state of its last checkpoint, if any, and the critic of these neighbours.

        Neighbours that have ended meanwhile do not count. Adam's first moment stays that of the checkpoint.
        """
        if state is not None:
            self.load_state_dict(state)
        critics = []
        for answer in [peer.critic.remote() for peer in peers]:
            with suppress(RayError):
                critics.append(ray.get(answer))
        if critics:
            critic = _mean_critic(critics)
            own = {f"agent_{agent}.critic.{name}": t for agent in self._numbers for name, t in critic.items()}
            self._team.load_state_dict(self._team.state_dict() | own)

    def process(self) -> int:
        """This worker's process id."""
        return os.getpid()

    def write_adapters(self, folder: str) -> None:
        """Write agent_<i>/ of the own agents into a folder."""
        self._team.write_adapters(Path(folder))

    def _send(self, worker: int, attempt: int, key: Key, content: Any) -> None:
        self._peers[worker](attempt, key, self._worker, content)


def _critic_of(state: Mapping[str, Tensor], agent: int) -> dict[str, Tensor]:
    prefix = f"agent_{agent}.critic."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _mean_critic(critics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([critic[name] for critic in critics]).mean(0) for name in critics[0]}


@final
class _Records(logging.Handler):
    """Keeps the messages of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
