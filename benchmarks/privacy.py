"""How well an honest but curious agent reconstructs the others' rewards from what gossip sends it, and what masks do.

python benchmarks/privacy.py [--json FILE]

The attack knows the algorithm, the graph, the matrix, the dialogues and its own values. It is the best linear
estimate of the rewards from all messages of an exchange; R² is 1 if it finds them, and 0 if it learns nothing.

`td`: the TD errors of `actor.credit: consensus`, δ = V(s) - γ V(s') - r, with rewards of variance 1. The attack
replaces the agent's critic with its own, from which it differs by CRITICS_APART. R² follows from covariances; nothing
is drawn. `masked`: before the first round, each pair of neighbours adds a common random number with opposite signs, of
standard deviation `size`: the team's mean stays what it is, and its error after some rounds grows.

`critic`: the critics' weights and Adam's second moments, which every credit gossips. rlhf_marl's own critics learn from
random features and rewards; the attack solves for the gradient that the neighbour's first message shows, and for the
TD errors that give it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from rlhf_marl.algorithm.critic import Critic, Transition
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


class Listening:
    """A mixer that keeps what it is given: the messages of round 0."""

    def __init__(self, matrix: Tensor, rounds: int) -> None:
        self._mixer, self.heard = MatrixMixer(matrix, rounds), torch.empty(0)
        self.own_share = self._mixer.own_share

    def mix(self, values: Tensor) -> Tensor:
        self.heard = values.clone()
        return self._mixer.mix(values)


def critic(optimizer: str, updates: int = 10, dialogues: int = 4, seed: int = 0) -> Iterator[dict[str, Any]]:
    """R² of agent 1's rewards as agent 0, its neighbour on a ring, reconstructs them: a row per update."""
    generator = torch.Generator().manual_seed(seed)
    mixer = Listening(torch.from_numpy(graph_of("ring")[1]), 20)
    network = Network(32, 2, generator=generator)
    made = Critic(
        network, network.initial_weights(generator), (N_AGENTS,), mixer, step_size=1e-4, optimizer=optimizer,
        average=False, initial_value="zero",
    )  # fmt: skip
    moment = torch.zeros(network.n_params)  # Adam's first moment of agent 1, as the attack follows it
    for update in range(1, updates + 1):
        x0, next_x0 = torch.randn(2, 1, dialogues, 32, generator=generator)
        reward = torch.randn(N_AGENTS, dialogues, generator=generator)
        own, squares = made.weights[0].clone(), moment if made._adam is None else made._adam.second_moment[0].clone()
        values = made.value(x0)[0] - 0.5 * made.value(next_x0)[0]
        made.update([Transition(x0, reward, next_x0, torch.full((1, 1), 0.5))])
        weights, *second = mixer.heard[1].split(network.n_params)
        if optimizer == "sgd":
            gradient = (own - weights) / 1e-4
        else:
            step = (own - weights) / 1e-4 * ((second[0] / (1 - 0.999**update)).sqrt() + 1e-8) * (1 - 0.9**update)
            size = ((second[0] - 0.999 * squares).clamp_min(0) / 0.001).sqrt()
            gradient = size * (step - 0.9 * moment).sign()
            moment = 0.9 * moment + 0.1 * gradient
        of_each = torch.stack([
            value_and_gradient(network, own.unsqueeze(0), x0[:, [b]], torch.ones_like)[1][0] for b in range(dialogues)
        ])  # fmt: skip
        solved = torch.linalg.lstsq(of_each.double().mT, gradient.double().unsqueeze(-1)).solution.squeeze(-1)
        found = values - solved * dialogues  # the gradient is a mean over dialogues
        yield {"optimizer": optimizer, "update": update, "r2": float(1 - (found - reward[1]).square().mean())}


@click.command(help=__doc__)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the rows here.")
def main(file: Path | None) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"td": [], "masked": [], "critic": []}
    click.echo(f"td: {'graph':<10}{'rounds':>7}{'R² of neighbours':>18}{'of others':>11}")
    for name in GRAPHS:
        for rounds in ROUNDS:
            rows["td"].append(row := td(name, rounds, 0.0))
            further = "" if row["further"] is None else f"{row['further']:.3f}"
            click.echo(f"    {name:<10}{rounds:>7}{row['neighbours']:>18.3f}{further:>11}")
    click.echo(
        f"masked: {'graph':<6}{'size':>7}{'R² of neighbours':>18}{'error after 5':>15}{'20':>10}{'80 rounds':>11}"
    )
    for name in GRAPHS:
        for size in SIZES:
            rows["masked"].append(row := td(name, 20, size))
            graph, matrix = graph_of(name)
            row["errors"] = {t: Messages(graph, matrix, size).consensus_error(t) for t in (5, 20, 80)}
            errors = "".join(f"{error:>{w}.2g}" for w, error in zip((15, 10, 11), row["errors"].values(), strict=True))
            click.echo(f"    {name:<10}{size:>7g}{row['neighbours']:>18.3f}{errors}")
    click.echo(f"critic: {'optimizer':<10}R² at update 1, 2, ...")
    for optimizer in ("sgd", "adam"):
        found = list(critic(optimizer))
        rows["critic"] += found
        click.echo(f"    {optimizer:<14}" + " ".join(f"{row['r2']:.3f}" for row in found))
    if file is not None:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
