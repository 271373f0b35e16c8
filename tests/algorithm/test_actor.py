"""The leave-one-out baseline and line 17's step, by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_marl.algorithm.actor import leave_one_out, normalised_step


def test_leave_one_out_by_hand():
    torch.testing.assert_close(leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]), 3), torch.tensor([[-3.0, -1.5, 4.5]]))
    torch.testing.assert_close(leave_one_out(torch.tensor([[7.0]]), 1), torch.tensor([[7.0]]))
    pairs = leave_one_out(torch.tensor([[1.0, 2.0, 10.0, 40.0]]), 2)  # of two questions
    torch.testing.assert_close(pairs, torch.tensor([[-1.0, 1.0, -30.0, 30.0]]))


@pytest.mark.parametrize("n", [2, 3, 7, 8, 12, 16])
def test_equal_signals_leave_exactly_nothing(n):
    """Rounding noise would be a whole step for Adam and for line 17."""
    assert torch.equal(leave_one_out(torch.full((2, n), 0.1), n), torch.zeros(2, n))


def test_normalised_step_has_length_alpha_and_the_right_direction():
    parameters = torch.zeros(3, 2)
    direction = torch.tensor([[3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0]])
    moved = normalised_step(parameters, direction, 0.5)
    torch.testing.assert_close(moved, torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.0, 0.0]]))


def test_a_tiny_direction_takes_a_whole_step():
    """The squares of the direction underflow to 0; scaling the direction changes nothing."""
    direction = torch.tensor([[3e-30, 4e-30], [3e30, 4e30]])
    moved = normalised_step(torch.zeros(2, 2), direction, 0.5)
    torch.testing.assert_close(moved, torch.tensor([[0.3, 0.4], [0.3, 0.4]]))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 6), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_leave_one_out_ignores_what_all_samples_share_and_sums_to_zero(n, shift, seed):
    signal = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(leave_one_out(signal + shift, n), leave_one_out(signal, n), atol=1e-9, rtol=0)
    torch.testing.assert_close(leave_one_out(signal, n).sum(-1), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_an_infinite_direction_leaves_its_own_row_alone():
    direction = torch.tensor([[float("inf"), 1.0], [0.0, -2.0]])
    moved = normalised_step(torch.ones(2, 2), direction, 0.5)
    assert moved.tolist() == [[1.0, 1.0], [1.0, 0.5]]
