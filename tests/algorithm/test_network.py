import pytest
import torch

from rlhf_marl.algorithm.network import Linear, Network, value_and_gradient


def network(width=4, depth=3, **options):
    return Network(width, depth, generator=torch.Generator().manual_seed(0), **options)


def test_equation_5_by_hand():
    """m = 2, D = 1: y = b . relu(W x0) / sqrt(2)."""
    net = network(width=2, depth=1)
    net.b = torch.tensor([[3.0, 5.0]])
    weights = torch.tensor([[1.0, 2.0, -1.0, 0.5]])  # one agent, W = [[1, 2], [-1, 0.5]]
    x0 = torch.tensor([[[1.0, 1.0], [-1.0, 2.0]]])
    # W x0 = (3, -0.5) and (3, 2); relu: (3, 0) and (3, 2); b . : 9 and 19.
    expected = torch.tensor([[9.0, 19.0]]) / 2**0.5
    torch.testing.assert_close(net.forward(weights, x0), expected)


def test_layers_apply_in_order():
    net = network(width=2, depth=2)
    net.b = torch.tensor([[1.0, 0.0]])
    first, second = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]
    weights = torch.tensor([first, second]).reshape(1, -1)
    assert net.forward(weights, torch.ones(1, 1, 2)).item() == 0.0  # the second layer moves all into unit 1
    swapped = torch.tensor([second, first]).reshape(1, -1)
    assert net.forward(swapped, torch.ones(1, 1, 2)).item() == 0.0
    net.b = torch.tensor([[0.0, 1.0]])
    assert net.forward(weights, torch.ones(1, 1, 2)).item() == pytest.approx(0.5)


def test_initial_scales():
    generator = torch.Generator().manual_seed(1)
    net = Network(200, 2, generator=generator)
    assert net.initial_weights(generator).var().item() == pytest.approx(2, rel=0.03)
    assert net.b.var().item() == pytest.approx(1, rel=0.3)
    assert net.n_params == 2 * 200 * 200


def test_gradient_against_finite_differences():
    net = network(width=3, depth=2)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, net.n_params, dtype=torch.float64, generator=generator)
    x0 = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    coefficient = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    values, gradient = value_and_gradient(net, weights, x0, lambda q: coefficient)
    torch.testing.assert_close(values, net.forward(weights, x0))
    step = 1e-6
    for agent in range(2):
        for index in range(net.n_params):
            moved = [weights.clone(), weights.clone()]
            moved[0][agent, index] += step
            moved[1][agent, index] -= step
            up, down = ((coefficient * net.forward(w, x0)).sum() for w in moved)
            assert gradient[agent, index].item() == pytest.approx(((up - down) / (2 * step)).item(), abs=1e-6)


def test_seeds_and_agents_are_independent():
    net = network()
    weights, x0 = torch.randn(5, 3, net.n_params), torch.randn(5, 1, 7, 4)
    together = net.forward(weights, x0)
    assert together.shape == (5, 3, 7)
    for seed in range(5):
        for agent in range(3):
            alone = net.forward(weights[seed, agent : agent + 1], x0[seed])
            torch.testing.assert_close(together[seed, agent : agent + 1], alone)


def test_a_policy_has_one_output_per_action():
    net = network(n_outputs=5, output_scale=0.1)
    assert net.forward(torch.randn(2, net.n_params), torch.randn(2, 6, 4)).shape == (2, 6, 5)
    assert net.b.abs().max() < 0.5


def test_dead_units_are_counted():
    net = network(width=2, depth=1)
    weights = torch.tensor([[1.0, 0.0, -1.0, 0.0]])  # unit 1 is off for positive first inputs
    assert net.dead_fraction(weights, torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])).item() == 0.5
    assert net.dead_fraction(weights, torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])).item() == 0.0


def test_seeds_may_have_an_output_layer_of_their_own():
    net, weights, x0 = network(), torch.randn(2, 3, network().n_params), torch.randn(2, 1, 7, 4)
    net.b = torch.randn(2, 1, 1, 4)
    together = net.forward(weights, x0)
    for seed in range(2):
        alone = network()
        alone.b = net.b[seed, 0]
        torch.testing.assert_close(together[seed], alone.forward(weights[seed], x0[seed]))


def test_a_linear_critic_by_hand():
    """y = wᵀ x, its gradient is c x, and its one layer is w."""
    linear = Linear(2)
    weights, x = torch.tensor([[2.0, -1.0]]), torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    value, gradient = value_and_gradient(linear, weights, x, lambda value: torch.tensor([[1.0, 10.0]]))
    torch.testing.assert_close(value, torch.tensor([[2.0, 2.0]]))
    torch.testing.assert_close(gradient, torch.tensor([[13.0, 4.0]]))
    assert linear.layers(weights).shape == (1, 1, 1, 2)
    assert linear.dead_fraction(weights, x).tolist() == [0.0]
