import numpy as np
import pytest
import torch

from rlhf_marl.gridworld import compiled_network

ON = np.zeros(9, np.int64)  # scratch


@pytest.fixture
def net():
    """Three layers of eight in float64, as (input, output), and an input."""
    rng = np.random.default_rng(0)
    hidden = np.zeros((4, 8))
    hidden[0] = rng.standard_normal(8)
    return rng.standard_normal((3, 8, 8)), hidden, rng.standard_normal(8)


def test_forward_and_backward_against_autograd(net):
    w, hidden, b = net
    compiled_network.forward(w, hidden, 0.5, ON)
    back = np.zeros((4, 8))
    compiled_network.backward(w, hidden, b, back, 0.5, True, ON)

    leaf, x = torch.tensor(w, requires_grad=True), torch.tensor(hidden[0], requires_grad=True)
    y = x
    for layer in leaf:
        y = torch.relu(layer.T @ y) * 0.5
    (b_y := torch.tensor(b) @ y).backward()
    assert compiled_network.dot(b, hidden[3]) == pytest.approx(b_y.item())
    assert 0 < (hidden[1:] == 0).mean() < 1
    for layer in range(3):
        np.testing.assert_allclose(np.outer(hidden[layer], back[layer]), leaf.grad[layer], atol=1e-12)
    np.testing.assert_allclose(back[3], x.grad, atol=1e-12)


def test_backward_against_finite_differences(net):
    w, hidden, b = net
    compiled_network.forward(w, hidden, 0.5, ON)
    back = np.zeros((4, 8))
    compiled_network.backward(w, hidden, b, back, 0.5, False, ON)
    along = np.random.default_rng(1).standard_normal(w.shape)
    values = []
    for sign in (1, -1):
        moved = hidden.copy()
        compiled_network.forward(w + sign * 1e-6 * along, moved, 0.5, ON)
        values.append(compiled_network.dot(b, moved[3]))
    slope = sum((np.outer(hidden[i], back[i]) * along[i]).sum() for i in range(3))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_a_nan_is_not_hidden_by_a_relu(net):
    w, hidden, _ = net
    w[1, 0] = np.nan
    hidden[0] = 1
    w[0, :, 0] = 1  # the first unit is on
    compiled_network.forward(w, hidden, 0.5, ON)
    assert np.isnan(hidden[3]).any()


def test_outer_products_and_norms(net):
    w, hidden, b = net
    changed = w[0].copy()
    compiled_network.add_outer(changed, 2.0, hidden[0], b, ON)
    np.testing.assert_allclose(changed, w[0] + 2 * np.outer(hidden[0], b))
    assert compiled_network.outside_norm(w[0], w[1], 2.0, hidden[0], b) == pytest.approx(np.linalg.norm(changed - w[1]))


def test_mixing_is_a_matrix_product():
    rng = np.random.default_rng(2)
    weights, source, target = rng.random((3, 3)), rng.random((3, 10)), np.zeros((3, 10))
    weights[1, 0] = 0
    compiled_network.mix(weights, source, target)
    np.testing.assert_allclose(target, weights @ source)
