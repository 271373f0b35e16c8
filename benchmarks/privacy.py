"""How well an honest but curious agent reconstructs the others' rewards from what gossip sends it, and what masks do.

python benchmarks/privacy.py [--json FILE]

The attack knows the algorithm, the graph, the matrix, the dialogues and its own values. It is the best linear
estimate of the rewards from all messages of an exchange; R² is 1 if it finds them, and 0 if it learns nothing.

`td`: the TD errors of `actor.credit: consensus`, δ = V(s) - γ V(s') - r, with rewards of variance 1. The attack
replaces the agent's critic with its own, from which it differs by CRITICS_APART. R² follows from covariances; nothing
is drawn. `masked`: the same with `topology.masked`, and the root mean square distance of the agents' results from the
team's mean. `steps`: the same for the critics' weights with SGD, whose step is linear in the TD errors.

`critic`: the critics' weights and Adam's second moments, which every credit gossips. rlhf_marl's own critics learn from
random features and rewards; the attack solves for the gradient that the neighbour's first message shows, and for the
rewards that give it. With masks, it subtracts the one that it shares, reads the weights alone, and takes the second
moments after gossip for the neighbour's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from rlhf_marl.algorithm.critic import Critic, Transition, gossip_scale
from rlhf_marl.algorithm.masks import MaskedMixer, Masks, pair_keys
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.network import Network, value_and_gradient
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix

N_AGENTS = 6
EDGES = [(i, i + 1) for i in range(N_AGENTS - 1)]
GRAPHS = ("complete", "grid", "ring", "path", "star")
CRITICS_APART = 0.1  # standard deviation of the difference between two agents' δ at the same reward
FLOAT32 = 6e-8  # relative rounding of a message
ROUNDS = (1, 5, 20)
SIZES = (0.0, 1.0, 10.0, 100.0)
MASKED_ROUNDS = (5, 20, 80)
SEEDS = 20
WIDTH, DEPTH, DIALOGUES, STEP_SIZE = 32, 2, 4, 1e-4


def graph_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency and consensus matrix, (N, N)."""
    graph = adjacency("explicit", N_AGENTS, edges=EDGES) if name == "path" else adjacency(name, N_AGENTS)
    return graph.numpy(), consensus_matrix("metropolis_hastings", graph).numpy()


class Messages:
    """Everything is linear in x = (rewards, differences between critics, masks), which are independent."""

    def __init__(self, graph: np.ndarray, matrix: np.ndarray, size: float) -> None:
        self.graph, self.matrix = graph, matrix
        pairs = [(i, j) for i, j in zip(*graph.nonzero(), strict=True) if i < j]
        signs = np.zeros((N_AGENTS, len(pairs)))
        for pair, (i, j) in enumerate(pairs):
            signs[i, pair], signs[j, pair] = 1.0, -1.0
        identity = np.eye(N_AGENTS)
        self.sent = np.hstack([-identity, identity, signs])  # z = -r + e + masks, (N, n)
        self.variance = np.repeat([1.0, CRITICS_APART**2, size**2], [N_AGENTS, N_AGENTS, len(pairs)])

    def r2(self, attacker: int, rounds: int) -> np.ndarray:
        """R² of every agent's reward, given the attacker's own part of x and all that its neighbours send it: (N,)."""
        own = np.flatnonzero(self.sent[attacker])
        seen, values = [np.eye(len(self.variance))[own]], self.sent
        for _ in range(rounds):
            seen.append(values[self.graph[attacker]])
            values = self.matrix @ values
        observed = np.vstack(seen)
        with_all = observed * self.variance
        covariance = with_all @ observed.T
        noise = np.diag(np.diag(covariance) * FLOAT32**2 + 1e-30)
        of_rewards = with_all[:, :N_AGENTS]
        return np.einsum("on,on->n", of_rewards, np.linalg.solve(covariance + noise, of_rewards))

    def consensus_error(self, rounds: int) -> float:
        """Root mean square over agents of the distance to the team's mean, after so many rounds."""
        left = np.linalg.matrix_power(self.matrix, rounds) @ self.sent
        left = left - self.sent.mean(0)
        return float(np.sqrt((left**2 * self.variance).sum() / N_AGENTS))


def td(name: str, rounds: int, size: float) -> dict[str, Any]:
    """Mean R² over attackers, of neighbours and of agents further away."""
    graph, matrix = graph_of(name)
    messages = Messages(graph, matrix, size)
    r2 = np.array([messages.r2(attacker, rounds) for attacker in range(N_AGENTS)])
    further = ~graph & ~np.eye(N_AGENTS, dtype=bool)
    return {
        "graph": name,
        "rounds": rounds,
        "size": size,
        "neighbours": float(r2[graph].mean()),
        "further": float(r2[further].mean()) if further.any() else None,
        "error": messages.consensus_error(rounds),
    }


def steps(name: str, rounds: int, size: float) -> dict[str, Any]:
    """Mean R² of neighbours' rewards from all critic weights that are sent, with SGD.

    The step is Σ_b δ_b ∇Q_b / B. In the directions of its singular vectors, the message is a TD error behind a mask.
    """
    generator = torch.Generator().manual_seed(0)
    network = Network(WIDTH, DEPTH, generator=generator)
    weights = network.initial_weights(generator).unsqueeze(0)
    x0 = 2**0.5 * torch.randn(1, DIALOGUES, WIDTH, generator=generator)
    lengths = torch.linalg.svdvals(gradients(network, weights, x0)) / DIALOGUES
    masks = size * gossip_scale(network, 1.0, step_size=1.0, optimizer="sgd", steps=1)[0][0].item()
    rows = [td(name, rounds, masks / length) for length in lengths.tolist()]
    return {
        "graph": name,
        "rounds": rounds,
        "size": size,
        "neighbours": float(np.mean([r["neighbours"] for r in rows])),
    }


def gradients(network: Network, weights: Tensor, x0: Tensor) -> Tensor:
    """∇Q at each dialogue, (n_params, B), in float64. weights: (1, n_params); x0: (1, B, m)."""
    of_each = [value_and_gradient(network, weights, x0[:, [b]], torch.ones_like)[1][0] for b in range(x0.shape[1])]
    return torch.stack(of_each, -1).double()


class Listening:
    """A mixer that keeps what it is given: the messages of round 0."""

    def __init__(self, matrix: Tensor, rounds: int) -> None:
        self._mixer, self.heard = MatrixMixer(matrix, rounds), torch.empty(0)
        self.own_share = self._mixer.own_share

    def mix(self, values: Tensor) -> Tensor:
        self.heard = values.clone()
        return self._mixer.mix(values)


def critic(optimizer: Any, size: float = 0.0, updates: int = 10, seed: int = 0) -> Iterator[dict[str, Any]]:
    """How far off agent 0, its neighbour on a ring, reconstructs agent 1's rewards: a row per update."""
    generator = torch.Generator().manual_seed(seed)
    graph, matrix = map(torch.from_numpy, graph_of("ring"))
    listening = Listening(matrix, 80)
    network = Network(WIDTH, DEPTH, generator=generator)
    keys = pair_keys(str(seed), graph)
    masks, shared = Masks(keys, range(N_AGENTS)), Masks({(0, 1): keys[0, 1]}, [1])
    scale, squares = gossip_scale(network, 1.0, step_size=STEP_SIZE, optimizer=optimizer, steps=1)
    made = Critic(
        network, network.initial_weights(generator), (N_AGENTS,),
        MaskedMixer(listening, masks, size * scale, squares) if size else listening,
        step_size=STEP_SIZE, optimizer=optimizer, average=False, initial_value="zero",
    )  # fmt: skip
    moment = torch.zeros(network.n_params)  # Adam's first moment of agent 1, as the attack follows it
    for update in range(1, updates + 1):
        masks.begin(graph, update)
        shared.begin(graph, update)
        x0, next_x0 = 2**0.5 * torch.randn(2, 1, DIALOGUES, WIDTH, generator=generator)
        reward = torch.randn(N_AGENTS, DIALOGUES, generator=generator)
        own, before = made.weights[[0]].clone(), torch.zeros(1) if made._adam is None else made._adam.second_moment[0]
        values = made.value(x0)[0] - 0.5 * made.value(next_x0)[0]
        made.update([Transition(x0, reward, next_x0, torch.full((1, 1), 0.5))])
        message = listening.heard[1] - (size * scale * shared.draw(len(scale))[0]).float()
        weights, *second = message.split(network.n_params)
        moved, noise = (own[0] - weights) / STEP_SIZE, size * scale[0].float() / STEP_SIZE
        if made._adam is not None:
            seen = second[0] if size == 0 else made._adam.second_moment[0]
            per_step = ((seen / (1 - 0.999**update)).clamp_min(0).sqrt() + 1e-8) * (1 - 0.9**update) / 0.1
            moved, noise = moved * per_step - 9 * moment, noise * per_step
            if size == 0:  # the sign alone, since the second moment has the size to more digits
                moved = ((second[0] - 0.999 * before).clamp_min(0) / 0.001).sqrt() * moved.sign()
        of_each = gradients(network, own, x0) / DIALOGUES
        found = ridge(of_each, of_each @ values.double() - moved.double(), noise)
        moment = 0.9 * moment + 0.1 * (of_each @ (values.double() - found)).float()
        error, of = (float(values.square().mean()) for values in (found - reward[1], reward[1]))
        yield {"optimizer": optimizer, "size": size, "seed": seed, "update": update, "error": error, "of": of}


def r2(rows: list[dict[str, Any]]) -> float:
    return 1 - sum(row["error"] for row in rows) / sum(row["of"] for row in rows)


def ridge(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The most likely r of y = x r + noise, if r has variance 1. x: (P, B); noise: standard deviations, (P,) or ()."""
    weights = 1 / (noise.double().square() + 1e-12 * y.square().mean()).expand(len(y))
    return torch.linalg.solve((x.mT * weights) @ x + torch.eye(x.shape[1]).double(), (x.mT * weights) @ y)


@click.command(help=__doc__)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the rows here.")
def main(file: Path | None) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"td": [], "masked": [], "steps": [], "critic": []}
    click.echo(f"td: {'graph':<10}{'rounds':>7}{'R² of neighbours':>18}{'of others':>11}")
    for name in GRAPHS:
        for rounds in ROUNDS:
            rows["td"].append(row := td(name, rounds, 0.0))
            further = "" if row["further"] is None else f"{row['further']:.3f}"
            click.echo(f"    {name:<10}{rounds:>7}{row['neighbours']:>18.3f}{further:>11}")
    for kind, compute in (("masked", td), ("steps", steps)):
        headings = "".join(f"{what:>12}" for what in [f"R² {t}" for t in MASKED_ROUNDS])
        errors = "" if kind == "steps" else "".join(f"{f'error {t}':>12}" for t in MASKED_ROUNDS)
        click.echo(f"{kind}: {'graph':<8}{'size':>7}{headings}{errors} rounds")
        for name in GRAPHS:
            for size in SIZES:
                found = [compute(name, rounds, size) for rounds in MASKED_ROUNDS]
                rows[kind] += found
                line = "".join(f"{row['neighbours']:>12.3f}" for row in found)
                line += "".join(f"{row['error']:>12.2g}" for row in found if "error" in row)
                click.echo(f"    {name:<10}{size:>7g}{line}")
    click.echo(f"critic: {'optimizer':<7}{'size':>7}{'R² 1':>12}{'2':>12}{'3 to 10':>12} updates")
    for optimizer in ("sgd", "adam"):
        for size in SIZES:
            found = [row for seed in range(SEEDS) for row in critic(optimizer, size, seed=seed)]
            rows["critic"] += found
            parts = [[row for row in found if row["update"] in updates] for updates in ((1,), (2,), range(3, 11))]
            click.echo(f"    {optimizer:<11}{size:>7g}" + "".join(f"{r2(part):>12.3f}" for part in parts))
    if file is not None:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
