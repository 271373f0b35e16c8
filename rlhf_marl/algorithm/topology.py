"""Graphs and consensus matrices (Definition 4.1), checked against Assumption 5.1."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_MAX_DRAWS = 1000
_SINKHORN_SWEEPS = 10_000

Edges = set[tuple[int, int]]


def _ring(n: int) -> Edges:
    return {(i, (i + 1) % n) for i in range(n)}


def _complete(n: int) -> Edges:
    return set(itertools.combinations(range(n), 2))


def _star(n: int) -> Edges:
    return {(0, i) for i in range(1, n)}


def _grid(n: int) -> Edges:
    """A lattice whose sides are the two closest factors of n; a path if n is prime."""
    columns = next(c for c in range(math.isqrt(n), 0, -1) if n % c == 0)
    right = {(i, i + 1) for i in range(n) if (i + 1) % columns}
    down = {(i, i + columns) for i in range(n - columns)}
    return right | down


def _exponential(n: int) -> Edges:
    """Agent i is linked to i ± 2^k (mod n)."""
    return {(i, (i + 2**k) % n) for i in range(n) for k in range(max(1, (n - 1).bit_length()))}


GRAPHS: dict[str, Callable[[int], Edges] | None] = {
    "ring": _ring,
    "complete": _complete,
    "star": _star,
    "grid": _grid,
    "exponential": _exponential,
    "random": None,  # drawn in `adjacency`
    "explicit": None,  # given to `adjacency`
}


def adjacency(
    graph: str,
    n_agents: int,
    *,
    edges: Sequence[tuple[int, int]] | None = None,
    edge_probability: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The communication graph: (n, n) bool, symmetric, no self-loops, connected.

    Args:
        edges: pairs of agents, only for graph `explicit`.
        edge_probability: for graph `random` (Erdős-Rényi, drawn again until connected).

    Raises:
        ValueError: unknown graph, bad edges, or a graph that is not connected.
    """
    if graph not in GRAPHS:
        raise ValueError(f"graph: {graph!r} is not a graph; choose {', '.join(GRAPHS)}")
    if (edges is not None) != (graph == "explicit"):
        raise ValueError(f"edges: {'needed for' if edges is None else 'only allowed with'} graph explicit")
    if graph == "random":
        return _random(n_agents, edge_probability, generator)
    build = GRAPHS[graph]
    result = _from_edges(edges if build is None else build(n_agents), n_agents, strict=build is None)  # type: ignore
    if not is_connected(result):
        raise ValueError(f"graph: {graph} with edges {list(edges or [])} does not connect all {n_agents} agents")
    return result


def _from_edges(edges: Sequence[tuple[int, int]] | Edges, n_agents: int, *, strict: bool) -> Tensor:
    result = torch.zeros(n_agents, n_agents, dtype=torch.bool)
    for a, b in edges:
        if strict and (a == b or not (0 <= a < n_agents and 0 <= b < n_agents)):
            raise ValueError(f"edges: [{a}, {b}] must name two different agents between 0 and {n_agents - 1}")
        result[a, b] = result[b, a] = a != b
    return result


def _random(n_agents: int, edge_probability: float, generator: torch.Generator | None) -> Tensor:
    for _ in range(_MAX_DRAWS):
        upper = torch.rand(n_agents, n_agents, generator=generator).triu(1) > 1 - edge_probability
        result = upper | upper.T
        if is_connected(result):
            return result
    raise ValueError(f"edge_probability: {edge_probability} gave no connected graph of {n_agents} agents; raise it")


def is_connected(adjacency: Tensor) -> bool:
    """Whether every agent reaches every other. adjacency: (n, n) bool."""
    n = adjacency.shape[-1]
    reach = torch.eye(n, dtype=torch.float64) + adjacency.double()
    return bool((torch.linalg.matrix_power(reach, n) > 0).all())


def _metropolis_hastings(graph: Tensor, generator: torch.Generator | None) -> Tensor:
    """A_ij = 1 / (1 + max(degree_i, degree_j)) on edges; A_ii is the remainder."""
    degree = graph.sum(-1).double()
    weights = graph / (1 + torch.maximum(degree[:, None], degree[None, :]))
    return weights + torch.diag(1 - weights.sum(-1))


def _uniform(graph: Tensor, generator: torch.Generator | None) -> Tensor:
    """A_ij = 1 / (1 + largest degree) on edges; A_ii is the remainder."""
    weights = graph / (1 + graph.sum(-1).max().double())
    return weights + torch.diag(1 - weights.sum(-1))


def _sinkhorn(graph: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random positive weights on edges and diagonal, scaled to doubly stochastic by Sinkhorn's iteration."""
    n = len(graph)
    draws = 0.05 + torch.rand(n, n, dtype=torch.float64, generator=generator)
    weights = draws * (graph | torch.eye(n, dtype=torch.bool))
    for _ in range(_SINKHORN_SWEEPS):
        weights = weights / weights.sum(-1, keepdim=True)
        weights = weights / weights.sum(-2, keepdim=True)
        if (weights.sum(-1) - 1).abs().max() < 1e-12:
            break
    return weights


MATRICES: dict[str, Callable[[Tensor, torch.Generator | None], Tensor] | None] = {
    "metropolis_hastings": _metropolis_hastings,
    "sinkhorn": _sinkhorn,
    "uniform": _uniform,
    "given": None,  # given to `consensus_matrix`
}


def consensus_matrix(
    kind: str,
    adjacency: Tensor,
    *,
    laziness: float = 0.0,
    given: Sequence[Sequence[float]] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The consensus matrix A on a graph: (1 - laziness) A + laziness I, (n, n) float64.

    Raises:
        ValueError: unknown kind, or a matrix that violates Assumption 5.1.
    """
    if kind not in MATRICES:
        raise ValueError(f"matrix: {kind!r} is not a consensus matrix; choose {', '.join(MATRICES)}")
    if (given is not None) != (kind == "given"):
        raise ValueError(f"weights: {'needed for' if given is None else 'only allowed with'} matrix given")
    build = MATRICES[kind]
    n = len(adjacency)
    if build is not None:
        matrix = build(adjacency, generator)
    elif any(len(row) != n for row in given or []) or len(given or []) != n:
        raise ValueError(f"weights: {n} rows of {n} numbers are needed for {n} agents")
    else:
        matrix = torch.tensor(given, dtype=torch.float64)
    matrix = (1 - laziness) * matrix + laziness * torch.eye(n, dtype=torch.float64)
    check_consensus_matrix(matrix, adjacency)
    return matrix


def check_consensus_matrix(matrix: Tensor, adjacency: Tensor | None = None, tolerance: float = 1e-6) -> None:
    """Assumption 5.1: doubly stochastic, positive diagonal, connected, and zero where the graph has no edge.

    Raises:
        ValueError: the matrix violates a clause; names the clause, where and by how much.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: shape {tuple(matrix.shape)} is not square")
    if not matrix.isfinite().all():
        raise ValueError("matrix: not all entries are finite")
    if matrix.min() < 0:
        i, j = divmod(int(matrix.argmin()), len(matrix))
        raise ValueError(f"matrix: not doubly stochastic: entry ({i}, {j}) is negative ({matrix.min():.6g})")
    for name, sums in (("row", matrix.sum(-1)), ("column", matrix.sum(-2))):
        worst = int((sums - 1).abs().argmax())
        if abs(sums[worst] - 1) > tolerance:
            raise ValueError(f"matrix: not doubly stochastic: {name} {worst} sums to {sums[worst]:.6g}, not to 1")
    if matrix.diagonal().min() <= 0:
        raise ValueError(f"matrix: the diagonal must be positive; entry {int(matrix.diagonal().argmin())} is 0")
    links = (matrix > 0) & (matrix.T > 0)
    if not is_connected(links):
        raise ValueError("matrix: not connected: some agents cannot reach some others")
    if adjacency is not None:
        allowed = adjacency | torch.eye(len(matrix), dtype=torch.bool)
        if (matrix[~allowed] != 0).any():
            i, j = ((matrix != 0) & ~allowed).nonzero()[0].tolist()
            raise ValueError(f"matrix: entry ({i}, {j}) is {matrix[i, j]:.6g}, but the graph has no such edge")


def spectral_gap(matrix: Tensor) -> float:
    """1 - σ_2(A), with the second largest singular value: one gossip round removes at least this share of disagreement.

    1.0 for a single agent. For a symmetric matrix σ_2 is |λ_2|; for other matrices |λ_2| can be smaller and is not a
    bound for one round.
    """
    # With the consensus direction projected out, the largest singular value is σ_2.
    centred = matrix - torch.full_like(matrix, 1 / len(matrix))
    return 1.0 - torch.linalg.matrix_norm(centred, ord=2).item()


def smallest_weight(matrix: Tensor) -> float:
    """η of Assumption 5.1: the smallest positive entry."""
    return matrix[matrix > 0].min().item()
