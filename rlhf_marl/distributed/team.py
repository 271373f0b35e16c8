"""The Team whose agents are Ray actors, and what happens when some of them fail."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, final

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from torch import Tensor

from rlhf_marl.algorithm.masks import Pair, exposed, keys_of
from rlhf_marl.algorithm.topology import MATRICES
from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Prompts, Turn
from rlhf_marl.dialogue.speakers import agents_in_words
from rlhf_marl.distributed.exchange import Message, NeighboursSilent, View
from rlhf_marl.distributed.worker import Learned, Loaded, Worker
from rlhf_marl.errors import RlhfMarlError, RunStopped, UsageError
from rlhf_marl.files.atomic import writing_folder
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.sampler import ABSENT, Sample
from rlhf_marl.rewards import Card, check_card
from rlhf_marl.runs.checkpoints import AgentStates, Checkpoints, agent_file
from rlhf_marl.sanitise import first_line
from rlhf_marl.training.build import masks_known, too_much_left
from rlhf_marl.training.team import AgentsLost, Row

_log = logging.getLogger("rlhf_marl")
_ACTOR: Any = ray.remote(concurrency_groups={"mail": 1})(Worker)  # type: ignore[call-overload]
_GRACE = 1.0  # seconds for a neighbour that was reported as silent to show that it only waited too
_MOST_REPEATS = 3  # of an update whose messages did not come, although nobody is lost; and of a return that fails
_LOADINGS = 5  # times as long as the first loading took, or round_timeout: then a lost agent has no room
_DISAGREEMENTS = ("disagreement_before", "disagreement_after")


@final
class RayTeam:
    """Agents in worker processes, which answer, score and learn at the same time.

    Agents whose process ends, or that are too slow, are lost: see `runtime.lost`.

    Attributes:
        reward_models: name of each agent's reward model.
        cards: the reward cards; none with private rewards.
        messages: log of the messages between workers in the last update.
    """

    def __init__(
        self,
        config: Config,
        where: str,
        graph: Tensor,
        matrix: Tensor,
        columns: Collection[str],
        run: Path | None,
        mask_keys: Mapping[Pair, bytes] | None = None,
    ) -> None:
        """Start the workers and let each load its models.

        Args:
            graph, matrix: (N, N), of the whole team.
            columns: of the questions, for reward models that read them.
            run: the run directory, where workers find checkpoints and write theirs.
            mask_keys: of all pairs of neighbours; a worker gets those of its own agents.

        Raises:
            UsageError: something is missing in a worker; names agents and what.
        """
        self._config, self._where, self._run, self._columns = config, where, run, list(columns)
        self._graph, self._matrix, self._mask_keys = graph, matrix, mask_keys
        self._numbers = config.workers
        self._worker_of = tuple(worker for worker, numbers in enumerate(self._numbers) for _ in numbers)
        self._attempt = self._update = self._snapshots = 0
        self.messages: list[Message] = []
        self._returning: dict[int, tuple[ActorHandle, ray.ObjectRef]] = {}
        self._workers: dict[int, ActorHandle] = {}
        began = time.monotonic()
        try:
            started = {w: self._start(w) for w in range(len(self._numbers))}
            self._workers = {w: handle for w, (handle, _) in started.items()}
            loaded = self._loaded({w: ref for w, (_, ref) in started.items()})
            self._patience = max(config.runtime.round_timeout, _LOADINGS * (time.monotonic() - began))
            self._introduce()
        except BaseException:
            self.close()
            raise
        self.reward_models = list(chain.from_iterable(loaded[w].names for w in sorted(loaded)))
        self.cards: list[Card] = [
            check_card(card, f"{where}: agents.{agent}.reward_model")
            for agent, card in enumerate(chain.from_iterable(loaded[w].cards for w in sorted(loaded)))
        ]

    def respond(self, prompts: Prompts, dialogues: Sequence[int], turn: int) -> list[list[Sample]]:
        found = self._ask("respond", lambda w: (prompts, dialogues, turn), "answering")
        return list(self._of_agents(found, [ABSENT] * len(dialogues)))

    def score(self, turn: Turn) -> Turn:
        with stage("score"):
            found = self._ask("score", lambda w: (turn,), "scoring")
        unknown = torch.full((len(turn.dialogues),), torch.nan)
        raw, scaled, value = (
            None
            if any(scores[part] is None for scores in found.values())
            else torch.stack(list(self._of_agents({w: scores[part] for w, scores in found.items()}, unknown)))
            for part in range(3)
        )
        nothing = unknown.expand(len(self._worker_of), -1)
        return replace(
            turn,
            reward_raw=nothing if raw is None else raw,
            reward_scaled=nothing if scaled is None else scaled,
            value=value,
        )

    def learn(self, turns: Sequence[Turn]) -> list[Row | None]:
        public = [replace(turn, reward_raw=Tensor(), reward_scaled=Tensor(), value=None) for turn in turns]
        self._update += 1
        with stage("update"):
            found = self._learn(public)
        self.messages = list(chain.from_iterable(found[w].messages for w in sorted(found)))
        rows = list(self._of_agents({w: learned.rows for w, learned in found.items()}, None))
        there = [row for row in rows if row is not None]
        of_team: Row = {name: _root_mean_square([row[name] for row in there]) for name in _DISAGREEMENTS}
        of_team["gossip_bytes_sent"] = sum(m.bytes for m in self.messages if m.exchange.startswith("mix"))
        of_team["present"] = [agent for agent, row in enumerate(rows) if row is not None]
        return [None if row is None else row | of_team for row in rows]

    def _learn(self, turns: Sequence[Turn]) -> dict[int, Learned]:
        """One update. If agents are lost in its course, the others repeat it without them, from the same state."""
        repeats = 0
        while True:
            view = self._view()
            refs = {w: handle.learn.remote(self._update, view, turns) for w, handle in self._workers.items()}
            found, lost, again = self._gather(refs, attempt=view.attempt)
            self._lose(lost, "learning")
            if not again:
                return found
            repeats += not lost
            if repeats > _MOST_REPEATS:
                raise RunStopped(
                    f"{agents_in_words(self._present())}: no agent is lost, but their messages do not arrive within "
                    f"{self._config.runtime.round_timeout:g} s; check the network between the workers"
                )

    def state_dict(self) -> "RemoteState":
        """The agents' state as it is now. It stays in the workers, which keep the newest two."""
        self._snapshots += 1
        self._ask("snapshot", lambda w: (self._snapshots,), "copying its state")
        return RemoteState(self, self._snapshots)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if isinstance(state, RemoteState):
            self._ask("restore", lambda w: (state.number,), "restoring its state")
        else:
            self._ask("load_state_dict", lambda w: (self._own(w, state),), "restoring its state")

    def _own(self, worker: int, state: Mapping[str, Tensor]) -> Any:
        """A worker's part of a state, or the folder in which the worker reads it itself."""
        if isinstance(state, AgentStates):
            return str(state.folder.resolve())
        mine = tuple(f"agent_{agent}." for agent in self._numbers[worker])
        return {name: tensor for name, tensor in state.items() if name.startswith(mine)}

    def fetch(self, snapshot: int) -> dict[str, Tensor]:
        """The content of a snapshot."""
        found = self._ask("fetch", lambda w: (snapshot,), "sending its state")
        return {name: tensor for w in sorted(found) for name, tensor in found[w].items()}

    def write_state(self, snapshot: int, folder: Path) -> None:
        """Let every worker write agent_<i>/ of its agents; that of lost ones is taken from the last checkpoint."""
        self._ask("write_state", lambda w: (snapshot, str(folder.resolve())), "writing a checkpoint")
        last = self._last_checkpoint() if self._returning else None
        for agent in chain.from_iterable(self._numbers[w] for w in self._returning):
            own = agent_file(folder, agent).parent
            shutil.rmtree(own, ignore_errors=True)  # what a lost worker has begun
            if isinstance(last, AgentStates) and agent_file(last.folder, agent).is_file():
                shutil.copytree(agent_file(last.folder, agent).parent, own)

    def save_adapters(self, folder: Path) -> None:
        for worker in list(self._returning):  # at the end of the run, so that everyone's adapter is there
            self._rejoin(worker, self._patience)
            if worker in self._returning:
                raise AgentsLost(
                    f"{agents_in_words(self._numbers[worker])} did not come back within {self._patience:.0f} s, so the "
                    "adapters are not written; they are in the last checkpoint, and --resume writes them"
                )
        with writing_folder(folder) as temporary:
            self._ask("write_adapters", lambda w: (str(temporary.resolve()),), "writing its adapter")

    def begin(self, iteration: int) -> None:
        """Start an iteration. Lost agents that have loaded their models again take part from here on."""
        for worker in list(self._returning):
            self._rejoin(worker, patience=0.0)
        self._ask("begin", lambda w: (iteration,), "starting an iteration")

    def forget_before(self, iteration: int) -> None:
        """Remove service answers of earlier iterations."""
        self._ask("forget_before", lambda w: (iteration,), "removing old answers")

    def processes(self) -> dict[int, int]:
        """The process that each agent lives in: agent -> process id on its host."""
        found = self._ask("process", lambda w: (), "starting")
        return {agent: pid for w, pid in found.items() for agent in self._numbers[w]}

    def close(self) -> None:
        """End the workers."""
        for handle in [*self._workers.values(), *(handle for handle, _ in self._returning.values())]:
            with suppress(RayError):
                ray.kill(handle)
        self._workers, self._returning = {}, {}

    def _present(self) -> list[int]:
        return [agent for agent, worker in enumerate(self._worker_of) if worker in self._workers]

    def _of_agents(self, found: Mapping[int, Sequence[Any]], absent: Any) -> Iterator[Any]:
        """What the workers returned for their agents, agent by agent; `absent` for those of other workers."""
        for worker, numbers in enumerate(self._numbers):
            yield from found[worker] if worker in found else [absent] * len(numbers)

    def _view(self) -> View:
        """The matrix as configured if all are present, else Metropolis weights, which stay doubly stochastic."""
        self._attempt += 1
        present = torch.zeros(len(self._worker_of), dtype=torch.bool)
        present[self._present()] = True
        graph = self._graph & present & present.unsqueeze(-1)
        matrix = self._matrix
        if not present.all():
            metropolis, laziness = MATRICES["metropolis_hastings"], self._config.topology.laziness
            assert metropolis is not None
            matrix = (1 - laziness) * metropolis(graph, None) + laziness * torch.eye(len(graph), dtype=torch.float64)
        return View(self._attempt, graph, matrix, tuple(self._present()), self._worker_of)

    def _start(self, worker: int) -> tuple[ActorHandle, ray.ObjectRef]:
        """Start a worker and let it load; returns its handle and the promise of a `Loaded`."""
        runtime = self._config.runtime
        actor = _ACTOR.options(
            num_cpus=runtime.cpus_per_worker, num_gpus=runtime.gpus_per_worker, scheduling_strategy="SPREAD"
        )
        content = self._config.model_dump(mode="json")
        handle = actor.remote(content, self._where, worker, self._numbers[worker], str(Path.cwd()))
        run = None if self._run is None else str(self._run.resolve())
        keys = None if self._mask_keys is None else keys_of(self._numbers[worker], self._mask_keys)
        return handle, handle.load.remote(run, self._columns, keys)

    def _loaded(self, refs: Mapping[int, ray.ObjectRef]) -> dict[int, Loaded]:
        """Wait until every worker has loaded its models, and compare their versions."""
        loaded: dict[int, Loaded] = {}
        problems: dict[str, list[int]] = {}
        for worker, ref in refs.items():
            try:
                loaded[worker] = ray.get(ref)
            except RayTaskError as error:
                if not isinstance(error.cause, RlhfMarlError):
                    raise
                problems.setdefault(str(error.cause), []).extend(self._numbers[worker])
            except RayError as error:
                reason = f"the worker ended while loading: {first_line(error)}"
                problems.setdefault(reason, []).extend(self._numbers[worker])
        if problems:
            raise UsageError("\n".join(f"{agents_in_words(who)}: {what}" for what, who in problems.items()))
        first = loaded[min(loaded)]
        for worker, answer in loaded.items():
            for name, version in answer.versions.items():
                if version != first.versions[name]:
                    raise UsageError(
                        f"{self._where}: runtime: {name} is {version} for {agents_in_words(self._numbers[worker])} on "
                        f"{answer.host}, and {first.versions[name]} for {agents_in_words(self._numbers[0])} on "
                        f"{first.host}"
                    )
            for warning in answer.warnings:
                _log.warning("%s: %s", agents_in_words(self._numbers[worker]), warning)
        return loaded

    def _introduce(self) -> None:
        """Tell every worker how to reach the others."""
        self._ask("meet", lambda w: (dict(self._workers),), "starting")

    def _ask(self, method: str, arguments: Callable[[int], tuple[Any, ...]], doing: str) -> dict[int, Any]:
        """Call a method of every worker: the results of those that are there at the end."""
        results: dict[int, Any] = {}
        while missing := [w for w in self._workers if w not in results]:
            refs = {w: getattr(self._workers[w], method).remote(*arguments(w)) for w in missing}
            found, lost, _ = self._gather(refs)
            results |= found
            self._lose(lost, doing)
        return {w: results[w] for w in sorted(self._workers)}

    def _gather(
        self, refs: Mapping[int, ray.ObjectRef], attempt: int | None = None
    ) -> tuple[dict[int, Any], dict[int, str], bool]:
        """Wait for promises.

        attempt: of an update. Its time is limited only once one worker has finished or given up, since a worker that
            waits for messages limits that itself. As soon as one fails, the others are told to wait no longer.

        Returns:
            The results; the lost workers with the reason; whether some gave up because messages did not come.

        Raises:
            RunStopped: a worker's agent stopped the run, and `runtime.lost` is stop.
        """
        limit = self._config.runtime.round_timeout
        pending = {ref: w for w, ref in refs.items()}
        found: dict[int, Any] = {}
        lost: dict[int, str] = {}
        silent: set[int] = set()
        gave_up = False
        deadline = time.monotonic() + limit if attempt is None else None
        while pending:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=rest)
            if not ready:  # those that a neighbour waited for in vain, or else all
                for ref, w in list(pending.items()):
                    if w in silent or not silent & set(pending.values()):
                        del pending[ref]
                        lost[w] = f"it was silent for {limit:g} s"
                deadline = time.monotonic() + limit
                continue
            w = pending.pop(ready[0])
            deadline = deadline or time.monotonic() + limit
            try:
                found[w] = ray.get(ready[0])
                continue
            except RayTaskError as error:
                cause = error.cause
                if isinstance(cause, NeighboursSilent):
                    gave_up = True
                    silent |= set(cause.workers)
                    if cause.workers:
                        deadline = time.monotonic() + _GRACE
                elif isinstance(cause, OSError) or (
                    isinstance(cause, RlhfMarlError) and self._config.runtime.lost == "stop"
                ):
                    raise cause from None
                elif isinstance(cause, RlhfMarlError):
                    lost[w] = str(cause)
                else:
                    raise
            except RayActorError:
                lost[w] = "its process ended"
            except RayError as error:
                lost[w] = first_line(error)
            if attempt is not None:
                for other in pending.values():
                    self._workers[other].call_off.remote(attempt)
        return found, lost, gave_up

    def _lose(self, lost: Mapping[int, str], doing: str) -> None:
        """Go on without these workers, as `runtime.lost` says."""
        if not lost:
            return
        mode = self._config.runtime.lost
        words = "; ".join(f"{agents_in_words(self._numbers[w])} lost while {doing}: {why}" for w, why in lost.items())
        if mode == "stop":
            raise AgentsLost(f"{words}; continue with --resume, or set runtime.lost to continue or wait")
        for worker in lost:
            with suppress(RayError):
                ray.kill(self._workers.pop(worker))
        if not self._workers:
            raise AgentsLost(f"{words}; nobody is left; continue with --resume")
        for worker in lost:
            self._returning[worker] = self._start(worker)
        if mode == "wait":
            _log.warning("%s; the others wait for it", words)
            for worker in lost:
                self._rejoin(worker, math.inf)
            return
        _log.warning("%s; going on with %s", words, agents_in_words(self._present()))
        view = self._view()
        parts = view.parts()
        if self._mask_keys is not None and (known := exposed(view.adjacency, view.worker_of)):
            _log.warning("%s", masks_known(known))
        there = list(view.present)
        if self._mask_keys is not None and (
            too_much := too_much_left(self._config, view.adjacency[there][:, there], view.matrix[there][:, there])
        ):
            _log.warning("topology.masked: with those who are left %s", too_much)
        if len(parts) > 1:
            _log.warning(
                "the graph of those who are left falls apart: %s no longer hear of each other",
                " and ".join(agents_in_words(part) for part in parts),
            )

    def _rejoin(self, worker: int, patience: float) -> None:
        """Take a worker back: adapters from its last checkpoint, critic from its neighbours.

        patience: seconds to wait until it has loaded its models. If that is not enough, it stays away.

        Raises:
            AgentsLost: it was waited for and failed several times.
        """
        deadline, who = time.monotonic() + patience, agents_in_words(self._numbers[worker])
        for failures in count(1):
            handle, ref = self._returning[worker]
            while not ray.wait([ref], timeout=min(self._patience, max(0.0, deadline - time.monotonic())))[0]:
                if time.monotonic() >= deadline:
                    return
                _log.warning("%s is not back yet; does the Ray cluster have room for it?", who)
            state = self._last_checkpoint()
            linked = self._graph[self._numbers[worker]].any(0).nonzero().flatten().tolist()
            near = {self._worker_of[agent] for agent in linked} & self._workers.keys()
            peers = [self._workers[w] for w in sorted(near)]
            try:
                ray.get(ref)
                rejoined: ray.ObjectRef = handle.rejoin.remote(
                    None if state is None else self._own(worker, state), peers
                )
                ray.get(rejoined, timeout=self._config.runtime.round_timeout)
                break
            except RayError as error:
                reason = first_line(error.cause if isinstance(error, RayTaskError) else error)
            if patience and failures == _MOST_REPEATS:
                raise AgentsLost(f"{who} cannot come back: {reason}; continue with --resume")
            _log.warning("%s could not come back: %s; trying again", who, reason)
            with suppress(RayError):
                ray.kill(handle)
            self._returning[worker] = self._start(worker)
            if not patience:
                return
        del self._returning[worker]
        self._workers = dict(sorted({**self._workers, worker: handle}.items()))
        self._introduce()
        _log.warning("%s is back", who)

    def _last_checkpoint(self) -> Mapping[str, Tensor] | None:
        found = None if self._run is None else Checkpoints(self._run / "checkpoints").load()
        return None if found is None else found[0]


@final
class RemoteState(Mapping[str, Tensor]):
    """A state that the workers keep. Its tensors come to the driver only if they are asked for."""

    def __init__(self, team: RayTeam, number: int) -> None:
        self._team, self.number = team, number

    def write(self, folder: Path) -> None:
        """Let the workers write it: agent_<i>/ of every agent."""
        self._team.write_state(self.number, folder)

    def __getitem__(self, name: str) -> Tensor:
        return self._team.fetch(self.number)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._team.fetch(self.number))

    def __len__(self) -> int:
        return len(self._team.fetch(self.number))


def _root_mean_square(values: Sequence[float]) -> float | None:
    """None if a value is not known."""
    found = (sum(value**2 for value in values) / len(values)) ** 0.5
    return None if math.isnan(found) else found
