import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_marl.algorithm.topology import (
    GRAPHS,
    MATRICES,
    adjacency,
    check_consensus_matrix,
    consensus_matrix,
    smallest_weight,
    spectral_gap,
)

NAMED_GRAPHS = [name for name in GRAPHS if name != "explicit"]
NAMED_MATRICES = [name for name in MATRICES if name != "given"]


@settings(max_examples=60, deadline=None)
@given(
    graph=st.sampled_from(NAMED_GRAPHS),
    kind=st.sampled_from(NAMED_MATRICES),
    n=st.integers(1, 8),
    seed=st.integers(0, 99),
    laziness=st.sampled_from([0.0, 0.7]),
)
def test_every_matrix_on_every_graph_satisfies_assumption_5_1(graph, kind, n, seed, laziness):
    generator = torch.Generator().manual_seed(seed)
    links = adjacency(graph, n, generator=generator)
    matrix = consensus_matrix(kind, links, laziness=laziness, generator=generator)
    ones = torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(matrix @ ones, ones)
    torch.testing.assert_close(ones @ matrix, ones)
    assert (matrix.diagonal() > 0).all()
    off_graph = ~(links | torch.eye(n, dtype=torch.bool))
    assert (matrix[off_graph] == 0).all()
    assert (matrix[links] >= smallest_weight(matrix) - 1e-15).all()
    assert smallest_weight(matrix) > 0
    assert 0 < spectral_gap(matrix) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("graph", "n", "degrees"),
    [
        ("ring", 5, [2, 2, 2, 2, 2]),
        ("ring", 2, [1, 1]),
        ("complete", 4, [3, 3, 3, 3]),
        ("star", 4, [3, 1, 1, 1]),
        ("grid", 6, [2, 2, 3, 3, 2, 2]),
        ("exponential", 8, [5] * 8),  # ±1, ±2 and 4
    ],
)
def test_degrees(graph, n, degrees):
    links = adjacency(graph, n)
    assert links.sum(-1).tolist() == degrees
    assert torch.equal(links, links.T)
    assert not links.diagonal().any()


def test_metropolis_weights_on_a_star_by_hand():
    matrix = consensus_matrix("metropolis_hastings", adjacency("star", 3))
    third = 1 / 3  # the hub has degree 2: every edge weighs 1 / (1 + 2)
    expected = [[third, third, third], [third, 2 * third, 0], [third, 0, 2 * third]]
    torch.testing.assert_close(matrix, torch.tensor(expected, dtype=torch.float64))


def test_spectral_gaps_by_hand():
    # Metropolis on a ring of 4 is circulant (1/3, 1/3, 0, 1/3): eigenvalues 1, 1/3, -1/3, 1/3.
    ring = consensus_matrix("metropolis_hastings", adjacency("ring", 4))
    assert spectral_gap(ring) == pytest.approx(2 / 3)
    complete = consensus_matrix("uniform", adjacency("complete", 4))
    assert spectral_gap(complete) == pytest.approx(1.0)
    lazy = consensus_matrix("uniform", adjacency("complete", 4), laziness=0.9)
    assert spectral_gap(lazy) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.4], [0.5, 0.5]], "row 0 sums to 0.9"),
        ([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]], "column 0 sums to 0.7"),
        ([[1.2, -0.2], [-0.2, 1.2]], r"entry \(0, 1\) is negative"),
        ([[0.0, 1.0], [1.0, 0.0]], "diagonal must be positive"),
        ([[1.0, 0.0], [0.0, 1.0]], "not connected"),
        ([[float("nan"), 1.0], [1.0, 0.0]], "finite"),
        ([[1.0, 0.0]], "not square"),
    ],
)
def test_each_broken_clause_is_named(matrix, message):
    with pytest.raises(ValueError, match=message):
        check_consensus_matrix(torch.tensor(matrix, dtype=torch.float64))


def test_weight_where_the_graph_has_no_edge_is_refused():
    path = adjacency("explicit", 3, edges=[(0, 1), (1, 2)])
    with pytest.raises(ValueError, match=r"entry \(0, 2\) .* no such edge"):
        consensus_matrix("given", path, given=[[1 / 3] * 3] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graph": "rng"}, "'rng' is not a graph; choose ring, complete"),
        ({"graph": "explicit", "edges": [(0, 1)]}, "does not connect all 3 agents"),
        ({"graph": "explicit", "edges": [(0, 3)]}, r"\[0, 3\] must name two different agents between 0 and 2"),
        ({"graph": "explicit", "edges": [(1, 1)]}, r"\[1, 1\] must name two different"),
        ({"graph": "explicit"}, "needed for graph explicit"),
        ({"graph": "ring", "edges": [(0, 1)]}, "only allowed with graph explicit"),
        ({"graph": "random", "edge_probability": 0.0}, "no connected graph"),
    ],
)
def test_impossible_graphs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        adjacency(n_agents=3, **arguments)
