"""Weights of the score function: literal values, and autograd of the surrogates themselves."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_marl.algorithm.objectives import OBJECTIVES, policy_gradient, ppo_clip


def weight(objective, ratio, advantage, **options):
    """Of one token: log π_old is -1."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    return objective(old + log(ratio), old, torch.tensor([advantage], dtype=torch.float64), **options).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, 2.0),
        (1.0, -2.0, -2.0),
        (1.5, 2.0, 0.0),  # better and already 1.5 times as likely: clipped
        (1.5, -2.0, -3.0),  # worse and more likely: pushed back with its whole weight
        (0.5, 2.0, 1.0),
        (0.5, -2.0, 0.0),
        (1.1, 2.0, 2.2),  # within 1 ± 0.2
        (0.9, -2.0, -1.8),
        (1.5, 0.0, 0.0),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, expected):
    assert weight(ppo_clip, ratio, advantage) == pytest.approx(expected, abs=1e-12)


def test_the_clip_range_moves_the_edge():
    assert weight(ppo_clip, 1.5, 2.0, clip_range=0.6) == pytest.approx(3.0)
    assert weight(ppo_clip, 1.5, 2.0, clip_range=0.4) == 0.0
    assert weight(ppo_clip, 0.5, -2.0, clip_range=0.6) == pytest.approx(-1.0)
    assert weight(ppo_clip, 0.5, -2.0, clip_range=0.4) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    difference=st.floats(-1.5, 1.5),
    advantage=st.floats(-5, 5),
    clip_range=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_ppo_clip_is_the_gradient_of_the_clipped_surrogate(difference, advantage, clip_range):
    new = torch.tensor([difference - 2.0], dtype=torch.float64, requires_grad=True)
    old, signal = torch.tensor([-2.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    ratio = torch.exp(new - old)
    if min(abs(ratio.item() - 1 - clip_range), abs(ratio.item() - 1 + clip_range)) < 1e-9:
        return  # at the kink both sides are gradients
    surrogate = torch.minimum(ratio * signal, ratio.clamp(1 - clip_range, 1 + clip_range) * signal)
    (expected,) = torch.autograd.grad(surrogate.sum(), new)
    if advantage:  # both sides of the minimum are 0 without an advantage
        torch.testing.assert_close(ppo_clip(new.detach(), old, signal, clip_range=clip_range), expected)


def test_ppo_clip_against_finite_differences():
    old, signal, step = torch.full((4,), -1.0).double(), torch.tensor([1.0, -1.0, 3.0, -3.0]).double(), 1e-6
    new = old + torch.tensor([0.3, 0.3, -0.1, -0.4]).double()

    def surrogate(log_probability):
        ratio = torch.exp(log_probability - old)
        return torch.minimum(ratio * signal, ratio.clamp(0.8, 1.2) * signal)

    difference = (surrogate(new + step) - surrogate(new - step)) / (2 * step)
    torch.testing.assert_close(ppo_clip(new, old, signal), difference, atol=1e-7, rtol=1e-6)


def test_policy_gradient_weighs_a_whole_response_by_its_probability_ratio():
    """Two responses of two tokens, with ratios 2 and 3 (together 6), and 1/2 and an ended one (together 1/2)."""
    ratios = torch.tensor([[2.0, 3.0], [0.5, 1.0]]).double()
    old = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]).double()
    signal = torch.tensor([[1.0, -2.0], [4.0, 0.0]]).double()
    found = policy_gradient(old + ratios.log(), old, signal)
    torch.testing.assert_close(found, torch.tensor([[6.0, -12.0], [2.0, 0.0]]).double())


def test_on_policy_all_objectives_agree():
    log_probability, signal = torch.tensor([-0.5, -3.0, -1.0]), torch.tensor([1.0, -2.0, 0.0])
    for objective in OBJECTIVES.values():
        assert torch.equal(objective(log_probability, log_probability, signal, clip_range=0.2), signal)
