"""Gossip as messages between neighbours: what one process sends, waits for and computes.

This module knows neither Ray nor models: `send` may be any function that delivers to another process's mailbox.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import own_share, team_mean

Key = tuple[str, int]
"""A message's place within an attempt: the exchange's name and the round."""


class Message(NamedTuple):
    """A line of the log of messages: what one agent sent to a neighbour in another process."""

    exchange: str
    round: int
    sender: int
    receiver: int
    bytes: int


class NeighboursSilent(Exception):
    """No message came from these workers: within the time allowed, or before the exchange was called off (none)."""

    def __init__(self, workers: Sequence[int]) -> None:
        super().__init__(list(workers))
        self.workers = list(workers)


@final
@dataclass(frozen=True, slots=True)
class View:
    """Who takes part in one attempt of an update, the same for all who do.

    Attributes:
        attempt: a number larger than those of all earlier attempts; their messages are dropped.
        adjacency: the graph on those present, (N, N) bool; nobody is a neighbour of an absent agent.
        matrix: the consensus matrix on it, (N, N) float64.
        present: numbers of the agents that take part.
        worker_of: the worker of each agent, N.
    """

    attempt: int
    adjacency: Tensor
    matrix: Tensor
    present: tuple[int, ...]
    worker_of: tuple[int, ...]

    def neighbours(self, worker: int) -> dict[int, list[tuple[int, int]]]:
        """By neighbouring worker: one link (own agent, other agent) per own agent that has a neighbour there."""
        links: dict[int, list[tuple[int, int]]] = {}
        for i, j in self.adjacency.nonzero().tolist():
            other = self.worker_of[j]
            if self.worker_of[i] == worker != other and all(i != sender for sender, _ in links.setdefault(other, [])):
                links[other].append((i, j))
        return links

    def tree(self, worker: int) -> tuple[int | None, list[int], int]:
        """A spanning tree of the workers that reach each other: parent, children, and their number of agents."""
        root = min(self._reached(worker))
        parents: dict[int, int | None] = {root: None}
        waiting = deque([root])
        while waiting:
            above = waiting.popleft()
            for below in sorted(self.neighbours(above)):
                if below not in parents:
                    parents[below] = above
                    waiting.append(below)
        agents = sum(self.worker_of[agent] in parents for agent in self.present)
        return parents[worker], [below for below, above in parents.items() if above == worker], agents

    def parts(self) -> list[list[int]]:
        """The agents present, grouped by who can reach whom."""
        by_workers: dict[frozenset[int], list[int]] = {}
        for agent in self.present:
            by_workers.setdefault(frozenset(self._reached(self.worker_of[agent])), []).append(agent)
        return list(by_workers.values())

    def _reached(self, worker: int) -> set[int]:
        found, waiting = {worker}, [worker]
        while waiting:
            new = self.neighbours(waiting.pop()).keys() - found
            found |= new
            waiting += new
        return found


@final
class Mailbox:
    """Messages that have arrived, for the attempt under way and for later ones. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: dict[tuple[int, Key], dict[int, Any]] = {}
        self._attempt, self._called_off = 0, 0

    def put(self, attempt: int, key: Key, sender: int, content: Any) -> None:
        """Keep a message from a worker, unless it is of an attempt that is over."""
        with self._changed:
            if attempt >= self._attempt:
                self._messages.setdefault((attempt, key), {})[sender] = content
                self._changed.notify_all()

    def begin(self, attempt: int) -> None:
        """Start an attempt; messages of earlier ones are dropped."""
        with self._changed:
            self._attempt = attempt
            self._messages = {place: found for place, found in self._messages.items() if place[0] >= attempt}

    def call_off(self, attempt: int) -> None:
        """Let those who wait in this attempt, or in earlier ones, give up."""
        with self._changed:
            self._called_off = max(self._called_off, attempt)
            self._changed.notify_all()

    def take(self, key: Key, senders: set[int], timeout: float) -> dict[int, Any]:
        """The messages of all these workers, in the order of their numbers: sums must not depend on who was first.

        Raises:
            NeighboursSilent: some did not come within `timeout` seconds, or the attempt was called off.
        """
        place = (self._attempt, key)
        with self._changed:
            self._changed.wait_for(
                lambda: self._called_off >= self._attempt or senders <= self._messages.get(place, {}).keys(), timeout
            )
            found = self._messages.get(place, {})
            if not senders <= found.keys():
                raise NeighboursSilent([] if self._called_off >= self._attempt else sorted(senders - found.keys()))
            return dict(sorted(self._messages.pop(place, {}).items()))


@final
class NeighbourMixer:
    """The `Mixer` of the agents in one worker: in every round, each agent sends its values to its neighbours.

    Attributes:
        log: the messages sent in the attempt under way.
    """

    def __init__(
        self,
        worker: int,
        numbers: Sequence[int],
        rounds: int,
        *,
        mailbox: Mailbox,
        send: Callable[[int, int, Key, Any], None],
        timeout: float,
    ) -> None:
        """
        Args:
            numbers: of the worker's agents.
            send: (receiving worker, attempt, key, content); returns at once.
            timeout: seconds to wait for the messages of one round.
        """
        self._worker, self._numbers, self._rounds = worker, list(numbers), rounds
        self._mailbox, self._send, self._timeout = mailbox, send, timeout
        self.log: list[Message] = []
        self._exchanges = 0

    def begin(self, view: View) -> None:
        """Start an attempt."""
        self._view = view
        self._links = view.neighbours(self._worker)
        self.log, self._exchanges = [], 0
        self._mailbox.begin(view.attempt)

    @property
    def own_share(self) -> float:
        return own_share(len(self._view.present), self._rounds)

    def mix(self, values: Tensor) -> Tensor:
        """t rounds of A on the rows of this worker's agents: (n_agents, n_values)."""
        if not self._rounds:
            return values
        name = f"mix {self._exchanges}"
        self._exchanges += 1
        within = self._view.matrix[self._numbers][:, self._numbers].to(values)
        for t in range(self._rounds):
            for worker, links in self._links.items():
                rows = {i: _array(values[self._numbers.index(i)]) for i, _ in links}
                self._post(worker, (name, t), rows, links)
            mixed = within @ values
            for rows in self._mailbox.take((name, t), set(self._links), self._timeout).values():
                for j, row in rows.items():
                    weights = self._view.matrix[self._numbers, j].to(values)
                    mixed = mixed + weights.unsqueeze(-1) * torch.tensor(row).to(values)
            values = mixed
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the agents that reach each other: (n_agents, n_values) -> (1, n_values). NaN without rounds of
        gossip, since a sum of few agents' values tells what they are.

        Sums go up a spanning tree of the graph and the mean comes down, so neighbours alone talk to each other.
        """
        if not self._links:
            return team_mean(values)
        if not self._rounds:
            return torch.full_like(values[:1], torch.nan)
        name = f"mean {self._exchanges}"
        self._exchanges += 1
        parent, children, agents = self._view.tree(self._worker)
        total = values.sum(-2, keepdim=True)
        for part in self._mailbox.take((name, 0), set(children), self._timeout).values():
            total = total + torch.tensor(part).to(values)
        if parent is None:
            mean = total / agents
        else:
            self._post(parent, (name, 0), _array(total), self._links[parent][:1])
            mean = torch.tensor(self._mailbox.take((name, 1), {parent}, self._timeout)[parent]).to(values)
        for child in children:
            self._post(child, (name, 1), _array(mean), self._links[child][:1])
        return mean

    def _post(self, worker: int, key: Key, content: Any, links: Sequence[tuple[int, int]]) -> None:
        arrays: Mapping[int, np.ndarray] = content if isinstance(content, dict) else {links[0][0]: content}
        self.log += [Message(*key, i, j, arrays[i].nbytes) for i, j in links]
        self._send(worker, self._view.attempt, key, content)


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().copy()
