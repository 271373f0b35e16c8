"""Messages between neighbours, with threads in place of processes."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch

from rlhf_marl.algorithm.mixing import disagreement, gossip_bytes
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix
from rlhf_marl.config import check_config
from rlhf_marl.distributed.exchange import Mailbox, Message, NeighbourMixer, NeighboursSilent, View


class Workers:
    """Mixers that share this process; `alive` workers run side by side, messages to the others go nowhere."""

    def __init__(self, graph, worker_of, rounds, timeout=20.0, alive=None):
        self.graph, self.worker_of, self.rounds = graph, worker_of, rounds
        self.mailboxes = {w: Mailbox() for w in sorted(set(worker_of))}
        self.mixers = {w: self.mixer(w, timeout) for w in self.mailboxes if alive is None or w in alive}

    def mixer(self, worker, timeout):
        def send(receiver, attempt, key, content):
            self.mailboxes[receiver].put(attempt, key, worker, content)

        return NeighbourMixer(
            worker, self.numbers(worker), self.rounds, mailbox=self.mailboxes[worker], send=send, timeout=timeout
        )

    def numbers(self, worker):
        return [agent for agent, w in enumerate(self.worker_of) if w == worker]

    def view(self, attempt=1):
        matrix = consensus_matrix("metropolis_hastings", self.graph)
        return View(attempt, self.graph, matrix, tuple(range(len(self.worker_of))), self.worker_of)

    def together(self, do):
        """What `do(mixer, numbers)` returns in each worker, as rows of the whole team."""
        start = Barrier(len(self.mixers))

        def one(worker):
            self.mixers[worker].begin(self.view())
            start.wait()
            return do(self.mixers[worker], self.numbers(worker))

        with ThreadPoolExecutor(len(self.mixers)) as pool:
            return list(pool.map(one, self.mixers))

    @property
    def log(self):
        return [message for mixer in self.mixers.values() for message in mixer.log]


VALUES = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LAYOUTS = {"one each": (0, 1, 2, 3, 4), "two and three": (0, 0, 1, 1, 1), "pairs": (0, 0, 1, 1, 2), "one": (0,) * 5}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("graph", ["ring", "star", "grid", "complete"])
def test_messages_compute_the_matrix_power(graph, layout):
    """Three rounds, one after another, in any layout of agents in workers."""
    workers = Workers(adjacency(graph, 5), layout, rounds=3)
    mixed = torch.cat(workers.together(lambda mixer, own: mixer.mix(VALUES[own])))
    matrix = consensus_matrix("metropolis_hastings", adjacency(graph, 5))
    torch.testing.assert_close(mixed, matrix @ (matrix @ (matrix @ VALUES)), atol=1e-14, rtol=0)


def test_the_log_has_neighbours_alone_and_the_computed_bytes():
    """On a path of three: 0 and 2 never hear of each other."""
    graph = adjacency("explicit", 3, edges=[(0, 1), (1, 2)])
    workers = Workers(graph, (0, 1, 2), rounds=2)
    workers.together(lambda mixer, own: (mixer.mix(VALUES[own]), mixer.mean(VALUES[own])))
    links = [(0, 1), (1, 0), (1, 2), (2, 1)]
    mixing = sorted(message for message in workers.log if message.exchange == "mix 0")
    assert mixing == [Message("mix 0", t, *link, 7 * 8) for t in (0, 1) for link in links]
    assert sum(message.bytes for message in mixing) == gossip_bytes(graph, 7 * 8, 2)
    assert {(message.sender, message.receiver) for message in workers.log} == set(links)
    assert len(workers.log) == 8 + 4  # the mean: sums up the tree, the mean down


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_mean_is_that_of_the_whole_team(layout):
    workers = Workers(adjacency("ring", 5), layout, rounds=1)
    found = workers.together(lambda mixer, own: mixer.mean(VALUES[own]))
    for mean in found:
        torch.testing.assert_close(mean, VALUES.mean(0, keepdim=True), atol=1e-15, rtol=0)
    squares = [
        len(own) * disagreement(VALUES[own], mean) ** 2
        for own, mean in zip(map(workers.numbers, workers.mixers), found, strict=True)
    ]
    torch.testing.assert_close((sum(squares) / 5).sqrt(), disagreement(VALUES))


def test_without_rounds_nothing_is_sent():
    workers = Workers(adjacency("ring", 5), (0, 1, 2, 3, 4), rounds=0)
    mixed = torch.cat(workers.together(lambda mixer, own: mixer.mix(VALUES[own])))
    assert torch.equal(mixed, VALUES)
    means = workers.together(lambda mixer, own: mixer.mean(VALUES[own]))
    assert all(mean.isnan().all() for mean in means)  # an agent's own sum would tell its critic
    assert workers.log == []
    assert workers.mixers[0].own_share == 1.0


def test_a_silent_neighbour_is_named():
    workers = Workers(adjacency("ring", 5), (0, 1, 2, 3, 4), rounds=1, timeout=0.1, alive={0, 1})
    with pytest.raises(NeighboursSilent) as silent:
        workers.together(lambda mixer, own: mixer.mix(VALUES[own]))
    assert silent.value.workers == [4]


def test_who_waits_gives_up_when_the_attempt_is_called_off_even_beforehand():
    mailbox = Mailbox()
    mailbox.call_off(3)
    mailbox.begin(3)
    with pytest.raises(NeighboursSilent) as silent:
        mailbox.take(("mix 0", 0), {1}, timeout=20.0)
    assert silent.value.workers == []
    mailbox.begin(4)
    mailbox.put(4, ("mix 0", 0), 1, "news")
    assert mailbox.take(("mix 0", 0), {1}, timeout=20.0) == {1: "news"}


def test_messages_of_an_earlier_attempt_do_not_count_and_early_ones_wait():
    mailbox = Mailbox()
    mailbox.begin(1)
    mailbox.put(1, ("mix 0", 0), 1, "old")
    mailbox.put(2, ("mix 0", 0), 1, "new")
    mailbox.begin(2)
    mailbox.put(1, ("mix 0", 0), 1, "late")
    assert mailbox.take(("mix 0", 0), {1}, timeout=20.0) == {1: "new"}


def test_a_graph_that_falls_apart():
    """Of a path 0 - 1 - 2 - 3, agent 1 is gone: the parts, and the mean of each."""
    graph = adjacency("explicit", 4, edges=[(0, 1), (1, 2), (2, 3)])
    graph[1] = graph[:, 1] = False
    workers = Workers(graph, (0, 1, 2, 3), rounds=1, alive={0, 2, 3})
    view = View(1, graph, torch.eye(4, dtype=torch.float64), (0, 2, 3), (0, 1, 2, 3))
    workers.view = lambda: view
    assert view.parts() == [[0], [2, 3]]
    means = torch.cat(workers.together(lambda mixer, own: mixer.mean(VALUES[own])))
    torch.testing.assert_close(means, torch.stack([VALUES[0], VALUES[2:4].mean(0), VALUES[2:4].mean(0)]))
    assert workers.mixers[0].own_share == 1 / 3


def test_a_returning_worker_gets_no_first_moment_and_keeps_its_own(content, monkeypatch):
    """A neighbour's recent rewards could be solved from Adam's first moment, which is not gossiped."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    from rlhf_marl.distributed.worker import Worker

    def worker(numbers, value):
        made = Worker(content, "c", 0, numbers, ".")
        names = ("adapter", "critic.weights", "critic.adam.step", "critic.adam.exp_avg", "critic.adam.exp_avg_sq")
        team = SimpleNamespace(
            state={f"agent_{i}.{name}": torch.full((2,), value + i) for i in numbers for name in names}
        )
        team.state_dict = lambda: dict(team.state)
        team.load_state_dict = lambda state: setattr(team, "state", dict(state))
        made._team = team
        return made

    neighbour, back = worker([0, 1], 10.0), worker([2], 50.0)
    assert {name: t.tolist() for name, t in neighbour.critic().items()} == {
        "weights": [10.5, 10.5],
        "adam.step": [10.5, 10.5],
        "adam.exp_avg_sq": [10.5, 10.5],
    }
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    back.rejoin(None, [SimpleNamespace(critic=SimpleNamespace(remote=neighbour.critic))])
    assert {name: t.tolist()[0] for name, t in back._team.state.items()} == {
        "agent_2.adapter": 52.0,
        "agent_2.critic.weights": 10.5,
        "agent_2.critic.adam.step": 10.5,
        "agent_2.critic.adam.exp_avg": 52.0,
        "agent_2.critic.adam.exp_avg_sq": 10.5,
    }


def test_a_lost_agent_can_leave_too_few_rounds_for_the_masks(content, monkeypatch, caplog):
    """A ring of six without agent 2 is a path of five, of which a round leaves 1 - (2/3) (1 - cos 36°k)."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    from rlhf_marl.distributed.team import RayTeam

    graph = adjacency("ring", 6)
    left = [1 - 2 / 3 * (1 - math.cos(math.pi * k / 5)) for k in range(5)]
    assert 10 * math.sqrt(sum(3 * (1 - x) * x**40 for x in left) / 5) == pytest.approx(0.181, abs=0.0005)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(RayTeam, "_start", lambda self, worker: (None, None))
    for rounds, said in ((20, ["20 rounds leave 0.18 of masks of size 10"]), (60, [])):
        topology = {"graph": "ring", "masked": True, "gossip_rounds": rounds}
        runtime = {"kind": "ray", "lost": "continue"}
        changes = {"agents": [content["agents"][0]] * 6, "topology": topology, "runtime": runtime}
        team = object.__new__(RayTeam)
        team._config = check_config(content | changes, "c")
        team._graph, team._matrix = graph, consensus_matrix("metropolis_hastings", graph)
        team._numbers, team._worker_of, team._mask_keys = [[i] for i in range(6)], tuple(range(6)), {}
        team._attempt, team._returning, team._workers = 0, {}, dict.fromkeys(range(6))
        caplog.clear()
        team._lose({2: "its process ended"}, "learning")
        assert [record.getMessage().partition(",")[0] for record in caplog.records[2:]] == [
            f"topology.masked: with those who are left {words}" for words in said
        ]
        assert "the values of agents 1, 3 from" in caplog.records[1].getMessage()
