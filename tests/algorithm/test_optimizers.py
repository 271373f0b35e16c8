"""Adam per agent equals torch's Adam, row by row and bit for bit."""

import pytest
import torch

from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.optimizers import AgentAdam, SignalScale

SHAPE = (2, 3, 5)  # seeds, agents, parameters


def draws(n, shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def everyone(shape=SHAPE):
    return torch.ones(shape[:-1], dtype=torch.bool)


def test_equals_torchs_adam_on_every_row():
    start, *gradients = draws(5)
    usable = torch.rand(4, *SHAPE[:-1], generator=torch.Generator().manual_seed(1)) > 0.4
    assert 0 < usable.sum() < usable.numel()
    ours = start.clone()
    adam = AgentAdam(ours, 0.1)
    for gradient, mask in zip(gradients, usable, strict=True):
        adam.step(gradient, mask)
    for seed in range(2):
        for agent in range(3):
            row = torch.nn.Parameter(start[seed, agent].clone())
            reference = torch.optim.Adam([row], lr=0.1)
            for gradient, mask in zip(gradients, usable, strict=True):
                if mask[seed, agent]:
                    row.grad = gradient[seed, agent].clone()
                    reference.step()
            assert torch.equal(ours[seed, agent], row.detach())
            state = adam.state_dict(3 * seed + agent)
            assert state.keys() == reference.state[row].keys()
            assert all(torch.equal(state[name], reference.state[row][name]) for name in state)


def test_the_first_step_has_the_step_size_whatever_the_gradients_scale():
    parameters = torch.zeros(2, 2)
    AgentAdam(parameters, 0.5).step(torch.tensor([[3.0, -1000.0], [-0.25, 1.0]]), torch.tensor([True, True]))
    torch.testing.assert_close(parameters, torch.tensor([[-0.5, 0.5], [0.5, -0.5]]))


def test_a_skipped_row_keeps_weights_moments_and_step_count():
    start, first, second = draws(3, (2, 3))
    parameters = start.clone()
    adam = AgentAdam(parameters, 0.1)
    adam.step(first, torch.tensor([True, True]))
    weights = parameters[0].clone()
    before = {name: value.clone() for name, value in adam.state_dict(0).items()}
    second[0] = float("nan")
    adam.step(second, torch.tensor([False, True]))
    assert torch.equal(parameters[0], weights)
    assert all(torch.equal(value, before[name]) for name, value in adam.state_dict(0).items())
    assert [adam.state_dict(row)["step"].item() for row in range(2)] == [1, 2]
    assert parameters.isfinite().all()


def test_moments_by_hand():
    """β1 = 0.9, β2 = 0.999: a gradient of 2 gives moments 0.2 and 0.004. The second row skips the step."""
    adam = AgentAdam(torch.zeros(2, 1), 0.1)
    adam.step(torch.tensor([[2.0], [3.0]]), torch.tensor([True, False]))
    torch.testing.assert_close(adam.second_moment, torch.tensor([[0.004], [0.0]]))
    assert [adam.state_dict(row)["step"].item() for row in (0, 1)] == [1.0, 0.0]
    assert adam.state_dict(0)["exp_avg"].item() == pytest.approx(0.2)
    adam.second_moment = torch.tensor([[0.5], [0.25]])
    adam.forget_momentum()
    assert adam.state_dict(0)["exp_avg"].item() == 0.0
    assert [adam.state_dict(row)["exp_avg_sq"].item() for row in (0, 1)] == [0.5, 0.25]


def test_steps_after_the_momentum_was_cleared_keep_their_length():
    """A constant gradient gives steps of the step size, however many came before."""
    weights = torch.zeros(1, 1)
    adam = AgentAdam(weights, 0.1)
    for _ in range(20):
        adam.forget_momentum()
        for _ in range(2):
            before = weights.clone()
            adam.step(torch.tensor([[3.0]]), torch.tensor([True]))
            assert (before - weights).item() == pytest.approx(0.1, rel=1e-4)


def test_a_restored_state_continues_alike_and_is_a_copy():
    start, first, second, third = draws(4, (2, 3))
    ours = start.clone()
    adam = AgentAdam(ours, 0.1)
    adam.step(first, torch.tensor([True, True]))
    theirs = ours.clone()
    other = AgentAdam(theirs, 0.1)
    for row in range(2):
        other.load_state_dict(row, adam.state_dict(row))
    other.step(second, torch.tensor([True, True]))
    adam.step(second, torch.tensor([True, True]))
    assert torch.equal(ours, theirs)
    adam.step(third, torch.tensor([True, True]))
    assert adam.state_dict(0)["step"].item() == 3


def test_a_state_with_a_missing_part_is_refused():
    adam = AgentAdam(torch.zeros(1, 2), 0.1)
    adam.step(torch.ones(1, 2), torch.tensor([True]))
    state = adam.state_dict(0)
    del state["exp_avg_sq"]
    with pytest.raises(KeyError, match="exp_avg_sq"):
        adam.load_state_dict(0, state)


def test_a_scale_multiplies_the_step():
    """Adam's first step has length α in every coordinate."""
    parameters = torch.zeros(2, 3)
    AgentAdam(parameters, 0.1).step(torch.ones(2, 3), torch.tensor([True, True]), torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(parameters, torch.tensor([[-0.025] * 3, [0.0] * 3]))


def test_the_signals_scale_by_hand():
    """Mean squares 0.125, 0 and 4: the team's is 1.375. The third agent's is larger, so its scale is 1."""
    scale, everyone = SignalScale(3, MatrixMixer(torch.full((3, 3), 1 / 3), 1)), torch.tensor([True, True, True])
    first = scale.update(torch.tensor([[0.3, -0.4], [0.0, 0.0], [2.0, -2.0]]), everyone)
    torch.testing.assert_close(first, torch.tensor([(0.125 / 1.375) ** 0.5, 0.0, 1.0]))
    # The weighted mean of 0.125 and 0.25 with Adam's weights 0.999 and 1; the second agent skips.
    second = scale.update(torch.tensor([[0.5, 0.5], [9.0, 9.0], [2.0, 2.0]]), torch.tensor([True, False, True]))
    mean = (0.999 * 0.125 + 0.25) / 1.999
    torch.testing.assert_close(second, torch.tensor([(3 * mean / (mean + 4)) ** 0.5, 0.0, 1.0]))
    assert scale.state_dict(1) == {"second_moment": torch.tensor(0.0), "updates": torch.tensor(1.0)}


def test_a_team_without_any_signal_does_not_move():
    scale = SignalScale(2, MatrixMixer(torch.full((2, 2), 0.5), 1))
    assert scale.update(torch.zeros(2, 4), torch.tensor([True, True])).tolist() == [0.0, 0.0]


def test_a_restored_scale_continues_alike():
    signals, usable = draws(3, (2, 4)), torch.tensor([True, True])
    scale, other = (SignalScale(2, MatrixMixer(torch.full((2, 2), 0.5), 1)) for _ in range(2))
    scale.update(signals[0], usable)
    for agent in range(2):
        other.load_state_dict(agent, {name: value.clone() for name, value in scale.state_dict(agent).items()})
    for signal in signals[1:]:
        assert torch.equal(scale.update(signal, usable), other.update(signal, usable))
