import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_marl.algorithm.mixing import (
    MatrixMixer,
    consensus_power,
    disagreement,
    gossip,
    gossip_bytes,
    sufficient_rounds,
)
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix, spectral_gap


def ring(n):
    return consensus_matrix("metropolis_hastings", adjacency("ring", n))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 7), rounds=st.integers(0, 12), seed=st.integers(0, 99))
def test_gossip_keeps_the_mean_and_contracts_by_the_second_eigenvalue(n, rounds, seed):
    matrix = ring(n)
    values = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mixed = gossip(consensus_power(matrix, rounds), values)
    torch.testing.assert_close(mixed.mean(0), values.mean(0))
    bound = (1 - spectral_gap(matrix)) ** rounds * disagreement(values)
    assert disagreement(mixed) <= bound + 1e-12


def test_a_power_is_repeated_multiplication():
    matrix, values = ring(5), torch.randn(5, 3, dtype=torch.float64)
    expected = values
    for _ in range(4):
        expected = matrix @ expected
    torch.testing.assert_close(gossip(consensus_power(matrix, 4), values), expected)


def test_no_rounds_change_nothing_at_all():
    values = torch.randn(2, 4, 7)
    assert torch.equal(gossip(consensus_power(ring(4), 0), values), values)


def test_leading_dimensions_are_independent_and_dtype_is_kept():
    values, power = torch.randn(2, 3, 4, 7), consensus_power(ring(4), 3)
    mixed = gossip(power, values)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed[1, 2], gossip(power, values[1, 2]))


def test_disagreement_by_hand():
    # Two agents at (0, 0) and (6, 8): each is 5 away from the mean (3, 4).
    assert disagreement(torch.tensor([[0.0, 0.0], [6.0, 8.0]])).item() == 5.0


def test_bytes_by_hand():
    # A path 0 - 1 - 2: four directed links, 10 values of 4 bytes, 3 rounds.
    path = adjacency("explicit", 3, edges=[(0, 1), (1, 2)])
    assert gossip_bytes(path, 40, 3) == 4 * 10 * 4 * 3


def test_negative_rounds_are_refused():
    with pytest.raises(ValueError, match="-1 is negative"):
        consensus_power(ring(3), -1)


def test_seeds_may_have_matrices_of_their_own():
    matrices = torch.stack([ring(4), consensus_matrix("uniform", adjacency("star", 4))])
    values = torch.randn(2, 4, 7, dtype=torch.float64)
    mixed = gossip(consensus_power(matrices, 3), values)
    for seed in range(2):
        torch.testing.assert_close(mixed[seed], gossip(consensus_power(matrices[seed], 3), values[seed]))


def test_a_mixer_by_hand():
    """A = (3/4, 1/4; 1/4, 3/4), so A² = (5/8, 3/8; 3/8, 5/8)."""
    mixer = MatrixMixer(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), 2)
    assert mixer.mix(torch.tensor([[8.0, 0.0], [0.0, 16.0]])).tolist() == [[5.0, 6.0], [3.0, 10.0]]


def test_the_own_share_is_that_of_the_mean_after_any_number_of_rounds():
    """A star of three: after one round the hub keeps 1/3 and the leaves 2/3 of their value; own_share is 1/3."""
    star = consensus_matrix("metropolis_hastings", adjacency("star", 3))
    assert MatrixMixer(star, 1).own_share == MatrixMixer(star, 100).own_share == pytest.approx(1 / 3)
    assert MatrixMixer(star, 0).own_share == 1.0


def test_sufficient_rounds_by_hand():
    """A lazy pair halves the disagreement each round: after 19 rounds 0.5 ** 20 is left, below 1e-6."""
    pair = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    assert [sufficient_rounds(pair, rounds) for rounds in (0, 5, 30)] == [0, 5, 19]
    ring_of_three = consensus_matrix("metropolis_hastings", adjacency("ring", 3))
    assert sufficient_rounds(ring_of_three, 20) == 1


def test_the_spectral_gap_bounds_a_round_also_where_the_matrix_is_not_symmetric():
    """Eigenvalues 1, 0, 0 suggest consensus in one round, but (1, 1, -2) becomes (1, -1, 0): √2 / √6 of it stays."""
    matrix = torch.tensor([[3.0, 3.0, 0.0], [1.0, 1.0, 4.0], [2.0, 2.0, 2.0]], dtype=torch.float64) / 6
    values = torch.tensor([[1.0], [1.0], [-2.0]], dtype=torch.float64)
    torch.testing.assert_close(MatrixMixer(matrix, 1).mix(values), torch.tensor([[1.0], [-1.0], [0.0]]).double())
    assert spectral_gap(matrix) == pytest.approx(1 - 3**-0.5)


@settings(max_examples=20, deadline=None)
@given(rounds=st.integers(0, 8), seed=st.integers(0, 99))
def test_a_mixer_is_repeated_multiplication(rounds, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = consensus_matrix("sinkhorn", adjacency("complete", 4), generator=generator)
    values = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    expected = values
    for _ in range(rounds):
        expected = matrix @ expected
    torch.testing.assert_close(MatrixMixer(matrix, rounds).mix(values), expected)
