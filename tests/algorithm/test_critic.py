from dataclasses import replace

import pytest
import torch

from rlhf_marl.algorithm.critic import Critic, Transition, project_to_ball
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.network import Network
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix

ALONE = MatrixMixer(torch.eye(2), 0)  # no gossip between two agents


def network(width=4, depth=2):
    return Network(width, depth, generator=torch.Generator().manual_seed(0))


def transition(width=4, agents=2, batch=3, seed=0, discount=0.5):
    generator = torch.Generator().manual_seed(seed)
    return Transition(
        x0=torch.randn(1, batch, width, generator=generator),
        reward=torch.randn(agents, batch, generator=generator),
        next_x0=torch.randn(1, batch, width, generator=generator),
        discount=torch.full((1, 1), discount),
    )


def critic(net, mixer=ALONE, **options):
    settings = {"step_size": 0.1, "average": False} | options
    initial = net.initial_weights(torch.Generator().manual_seed(1))
    return Critic(net, initial, (2,), mixer, **settings)


def test_one_td_step_by_hand():
    """m = D = 1: Q = b relu(w x), so W - β δ ∇Q = w - β (b w x - r - γ b w x') b x."""
    net = Network(1, 1, generator=torch.Generator().manual_seed(0))
    net.b = torch.tensor([[2.0]])
    one = Critic(net, torch.tensor([3.0]), (1,), MatrixMixer(torch.eye(1), 1), step_size=0.1, average=False)
    step = Transition(
        x0=torch.tensor([[[1.0]]]),
        reward=torch.tensor([[4.0]]),
        next_x0=torch.tensor([[[0.5]]]),
        discount=torch.tensor([[0.5]]),
    )
    metrics = one.update([step])
    # Q = 6, Q' = 3, δ = 6 - 4 - 1.5 = 0.5, ∇Q = 2: w = 3 - 0.1 * 0.5 * 2 = 2.9
    torch.testing.assert_close(one.weights, torch.tensor([[2.9]]))
    assert metrics.td_error.item() == pytest.approx(0.5)
    assert metrics.value.item() == pytest.approx(6.0)
    assert metrics.gradient_norm.item() == pytest.approx(1.0)


def test_values_from_zero_by_hand():
    """m = D = 1, Q = b relu(w x) - b relu(w(0) x): 0 at first, so δ = 0 - 4 - 0 and w = 3 + 0.1 * 4 * 2 = 3.8."""
    net = Network(1, 1, generator=torch.Generator().manual_seed(0))
    net.b = torch.tensor([[2.0]])
    mixer, start = MatrixMixer(torch.eye(1), 1), torch.tensor([3.0])
    one = Critic(net, start, (1,), mixer, step_size=0.1, average=False, initial_value="zero")
    x0, next_x0 = torch.tensor([[[1.0]]]), torch.tensor([[[0.5]]])
    step = Transition(x0=x0, reward=torch.tensor([[4.0]]), next_x0=next_x0, discount=torch.tensor([[0.5]]))
    assert one.value(x0).item() == 0.0
    assert one.update([step]).value.item() == 0.0
    torch.testing.assert_close(one.weights, torch.tensor([[3.8]]))
    assert one.value(x0).item() == pytest.approx(1.6)  # 7.6 - 6
    # Next δ = 1.6 - 4 - 0.5 * (3.8 - 3) = -2.8
    assert one.update([step]).td_error.item() == pytest.approx(2.8)


def test_values_from_zero_are_zero_where_products_of_another_shape_are_rounded_in_another_way(monkeypatch):
    """As on a GPU. Before anybody is rewarded there must be no signal, not even in the last bit."""
    plain = Network.forward
    monkeypatch.setattr(
        Network, "forward", lambda self, weights, x0: plain(self, weights, x0) * (1 + 1e-6 * weights.shape[0])
    )
    ours, step = critic(network(), initial_value="zero"), transition()
    assert ours.value(step.x0).abs().max() == 0.0
    metrics = ours.update([replace(step, reward=torch.zeros_like(step.reward))])
    assert metrics.td_error.abs().max() == 0.0
    torch.testing.assert_close(ours.weights, ours.initial.expand(2, -1), rtol=0, atol=0)


def test_line_9_averages_the_start_and_all_iterates():
    """K = 2: W = (W(0) + W(1) + W(2)) / 3."""
    net, steps = network(), [transition(seed=1), transition(seed=2)]
    iterates = [critic(net).weights]
    plain = critic(net)
    for step in steps:
        plain.update([step])
        iterates.append(plain.weights)
    averaged = critic(net, average=True)
    averaged.update(steps)
    torch.testing.assert_close(averaged.weights, sum(iterates) / 3)


def test_projection_by_hand():
    """Layer offsets (3, 4, 0, 0) and (0.6, 0.8, 0, 0) with B = 1: the first shrinks to (0.6, 0.8), the second stays."""
    net = network(width=2, depth=2)
    centre = torch.arange(8.0)
    offsets = torch.tensor([[3.0, 4, 0, 0, 0.6, 0.8, 0, 0]])
    inside, outside = project_to_ball(centre + offsets, centre, 1.0 + 1e-6, net)
    expected = torch.tensor([[0.6, 0.8, 0, 0, 0.6, 0.8, 0, 0]])
    torch.testing.assert_close(inside - centre, expected, atol=1e-5, rtol=0)
    assert outside.item() == 0.5


def test_weights_never_leave_the_ball():
    net = network()
    learner = critic(net, radius=0.05, step_size=10.0)
    metrics = learner.update([transition(seed=k) for k in range(3)])
    norms = net.layers(learner.weights - learner.initial).flatten(-2).norm(dim=-1)
    assert norms.max() <= 0.05 + 1e-6
    assert metrics.projected.min() > 0.5


def test_restart_forgets_and_warm_goes_on():
    net = network()
    restart = critic(net, start="restart")
    restart.update([transition(seed=1)])
    once = restart.weights
    restart.update([transition(seed=1)])
    assert torch.equal(restart.weights, once)
    warm = critic(net, start="warm")
    warm.update([transition(seed=1)])
    assert torch.equal(warm.weights, once)
    warm.update([transition(seed=1)])
    assert not torch.equal(warm.weights, once)


def test_restart_with_adam_begins_at_the_start_and_without_momentum():
    """One step of Adam moves a weight by at most about β; four in a row without a restart move some by more."""
    moved = {}
    for start in ("restart", "warm"):
        learner = critic(network(), start=start, optimizer="adam", step_size=0.01)
        for _ in range(4):
            learner.update([transition(seed=1)])
        moved[start] = (learner.weights - learner.initial).abs().max().item()
    assert moved["restart"] < 0.0101 < 0.03 < moved["warm"]


def test_gossip_closes_the_loop():
    net = network()
    learner = critic(net, MatrixMixer(consensus_matrix("uniform", adjacency("complete", 2)), 20))
    metrics = learner.update([transition()])
    assert metrics.disagreement_before > 1e-3
    assert metrics.disagreement_after < 1e-6
    torch.testing.assert_close(learner.weights[0], learner.weights[1])


def test_batched_seeds_equal_one_at_a_time():
    net, steps = network(), [transition(seed=s) for s in range(3)]
    batched = Critic(net, critic(net).initial, (3, 2), ALONE, step_size=0.1, radius=0.5)
    stacked = Transition(*(torch.stack([getattr(s, f) for s in steps]) for f in Transition.__slots__))
    batched.update([stacked, stacked])
    for seed, step in enumerate(steps):
        alone = critic(net, average=True, radius=0.5)
        alone.update([step, step])
        torch.testing.assert_close(batched.weights[seed], alone.weights)


def test_adam_equals_torch_on_each_agent_alone():
    """The reference minimises ½(Q - target)² with autograd, agent by agent."""
    net, steps = network(), [transition(seed=s) for s in range(4)]
    learner = critic(net, optimizer="adam", step_size=0.01)
    for step in steps:
        learner.update([step])
    for agent in range(2):
        weights = learner.initial.clone()[None].requires_grad_()
        adam = torch.optim.Adam([weights], lr=0.01)
        for step in steps:
            with torch.no_grad():
                target = step.reward[agent] + step.discount * net.forward(weights, step.next_x0)
            adam.zero_grad()
            (0.5 * (net.forward(weights, step.x0) - target).square().mean()).backward()
            adam.step()
        torch.testing.assert_close(learner.weights[agent], weights[0].detach(), atol=1e-5, rtol=1e-5)


def test_a_non_finite_reward_stops_only_its_own_agent():
    for optimizer in ("sgd", "adam"):
        net, step = network(), transition()
        healthy = critic(net, optimizer=optimizer)
        healthy.update([step])
        poisoned = critic(net, optimizer=optimizer)
        step.reward[1, 0] = float("nan")
        metrics = poisoned.update([step])
        assert metrics.skipped.tolist() == [0, 1]
        torch.testing.assert_close(poisoned.weights[0], healthy.weights[0])
        assert torch.equal(poisoned.weights[1], poisoned.initial)


def test_weights_that_would_overflow_stay_where_they_are():
    """The gradient is finite, but the step overflows for agent 1, which has the large rewards."""
    step = transition()
    step.reward[1] *= 1000
    learner = critic(network(), step_size=1e37, radius=None)
    assert learner.update([step]).skipped.tolist() == [0, 1]
    assert learner.weights.isfinite().all()
    assert torch.equal(learner.weights[1], learner.initial)
    assert not torch.equal(learner.weights[0], learner.initial)


def test_state_round_trip_continues_identically():
    net = network()
    for optimizer in ("sgd", "adam"):
        original = critic(net, optimizer=optimizer)
        original.update([transition(seed=1)])
        copy = critic(net, optimizer=optimizer)
        for agent in range(2):
            copy.load_state_dict(agent, {name: value.clone() for name, value in original.state_dict(agent).items()})
        original.update([transition(seed=2)])
        copy.update([transition(seed=2)])
        assert torch.equal(original.weights, copy.weights)


CHAIN = torch.tensor([4 / 3, 2 / 3])
AVERAGING = MatrixMixer(consensus_matrix("uniform", adjacency("complete", 2)), 5)
UNFINISHED = MatrixMixer(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), 1)


def two_state_chain(
    optimizer, step_size, updates, *, rewards=((2.0, 0.0), (0.0, 0.0)), mixer=AVERAGING, steps=1, start="warm"
):
    """s0 -> s1 -> s0 ..., γ = 0.5, mean reward (1, 0): V(s0) = 1 / (1 - 0.25) = 4/3, V(s1) = 2/3.

    Only together do the agents see the mean.
    """
    net = Network(32, 2, generator=torch.Generator().manual_seed(0), output_scale=0.1)
    states = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(3))
    initial = net.initial_weights(torch.Generator().manual_seed(1))
    options = {"step_size": step_size, "optimizer": optimizer, "start": start, "average": False}
    learner = Critic(net, initial, (2,), mixer, **options)
    step = Transition(states, torch.tensor(rewards), states.flip(1), torch.tensor([[0.5]]))
    for _ in range(updates):
        learner.update([step] * steps)
    return learner.value(states)


def test_gossip_with_plain_steps_finds_the_value_of_the_mean_reward():
    value = two_state_chain("sgd", 0.2, 600)
    torch.testing.assert_close(value, torch.tensor([[4 / 3, 2 / 3]] * 2), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "rewards",
    [((2.0, 0.0), (0.0, 0.0)), ((1.0, 0.0), (1.0, 0.0)), ((2.0, -1.0), (0.0, 1.0)), ((3.0, 0.0), (-1.0, 0.0))],
)
def test_gossip_with_adam_finds_the_value_of_the_mean_reward_however_it_is_split(rewards):
    """Each agent's own second moment would divide the gradients by different scales: (0.262, 0.131) for the first."""
    value = two_state_chain("adam", 0.01, 800, rewards=rewards)
    torch.testing.assert_close(value, torch.stack([CHAIN, CHAIN]), atol=0.001, rtol=0)


def test_gossip_with_adam_finds_it_also_on_a_slowly_mixing_graph():
    """The critics stay apart by the step size, around the value of the mean reward."""
    value = two_state_chain("adam", 0.0005, 3000, mixer=UNFINISHED)
    torch.testing.assert_close(value.mean(0), CHAIN, atol=0.01, rtol=0)
    assert 0.005 < (value[0] - value[1]).abs().max() < 0.05


def test_gossip_with_adam_survives_restarts():
    """From W(0) at every call, with enough steps; the gradient's scale is kept, so agents' steps stay comparable."""
    value = two_state_chain("adam", 0.002, 10, start="restart", steps=300)
    torch.testing.assert_close(value, torch.stack([CHAIN, CHAIN]), atol=0.2, rtol=0)
