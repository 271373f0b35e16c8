import hashlib
import math
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch

from rlhf_marl.algorithm.critic import Critic, Transition, gossip_scale
from rlhf_marl.algorithm.masks import (
    MaskedMixer,
    Masks,
    exposed,
    keys_of,
    masks_left,
    pair_keys,
    rounds_to_remove,
)
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.network import Network, value_and_gradient
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix

RING = adjacency("ring", 5)
VALUES = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def drawn(graph, place=(0, 0), *, secret="s", numbers=range(5), exchange=0, n_values=7):
    masks = Masks(keys_of(numbers, pair_keys(secret, RING)), numbers)
    masks.begin(graph, *place)
    return [masks.draw(n_values) for _ in range(exchange + 1)][exchange]


def test_masks_that_each_agent_draws_by_itself_cancel():
    alone = torch.cat([drawn(RING, numbers=[agent]) for agent in range(5)])
    assert torch.equal(alone, drawn(RING))
    torch.testing.assert_close(alone.sum(0), torch.zeros(7, dtype=torch.float64), atol=1e-14, rtol=0)


def test_an_agent_has_a_standard_normal_number_for_each_neighbour():
    """Neighbours share one of their two with opposite signs: variance 2 and covariance -1."""
    covariance = drawn(RING, n_values=100_000).cov()
    expected = 2 * torch.eye(5).double() - RING.double()
    torch.testing.assert_close(covariance, expected, atol=0.03, rtol=0)


def test_masks_follow_from_secret_update_and_exchange_alone():
    first = drawn(RING)
    assert torch.equal(first, drawn(RING))
    others = {"secret": "t"}, {"place": (0, 1)}, {"place": (1, 0)}, {"exchange": 1}
    assert not any(torch.equal(first, drawn(RING, **other)) for other in others)


def test_the_numbers_are_a_keyed_stream():
    """SHAKE-256 of key, update and exchange, which no short seed stands for, through the normal quantiles."""
    key = bytes(range(32))
    masks = Masks({(0, 1): key}, [0])
    masks.begin(RING, 3, 4)
    masks.draw(1)
    stream = hashlib.shake_256(key + b"3 4 1").digest(24)
    shares = [(int.from_bytes(stream[8 * k : 8 * k + 8], "little") // 2**12 + 0.5) / 2**52 for k in range(3)]
    assert masks.draw(3)[0].tolist() == pytest.approx([NormalDist().inv_cdf(share) for share in shares], rel=1e-9)


def test_a_lost_agents_masks_are_left_out_and_the_others_stay():
    """Without agent 2, its neighbours keep the masks that they share with others."""
    left = RING.clone()
    left[2] = left[:, 2] = False
    masks = drawn(left)
    torch.testing.assert_close(masks.sum(0), torch.zeros(7, dtype=torch.float64), atol=1e-14, rtol=0)
    assert not masks[2].any()
    assert torch.equal(masks[[0, 4]], drawn(RING)[[0, 4]])
    assert not torch.equal(masks[1], drawn(RING)[1])


def test_nothing_goes_out_unmasked_because_no_update_has_begun():
    with pytest.raises(RuntimeError, match="before an update has begun"):
        Masks(pair_keys("s", RING), range(5)).draw(7)


class Heard:
    """A mixer that keeps what it is given."""

    def __init__(self, mixer):
        self.mixer, self.own_share = mixer, mixer.own_share

    def mix(self, values):
        self.heard = values
        return self.mixer.mix(values)


def mixed(rounds, size=10.0, graph=RING):
    heard = Heard(MatrixMixer(consensus_matrix("metropolis_hastings", graph), rounds))
    masks = Masks(pair_keys("s", graph), range(len(graph)))
    masks.begin(graph, 0)
    return MaskedMixer(heard, masks, size).mix(VALUES), heard.heard


def test_the_mean_stays_and_rounds_remove_the_masks():
    """A round leaves at most σ_2 = (1 + 2 cos 72°) / 3 of them."""
    matrix = consensus_matrix("metropolis_hastings", RING)
    sigma = (1 + 2 * math.cos(2 * math.pi / 5)) / 3
    for rounds in (1, 5, 30, 80):
        result, sent = mixed(rounds)
        torch.testing.assert_close(result.mean(0), VALUES.mean(0), atol=1e-13, rtol=0)
        apart = (result - torch.linalg.matrix_power(matrix, rounds) @ VALUES).norm()
        assert apart <= sigma**rounds * (sent - VALUES).norm() + 1e-13
    assert (mixed(1)[0] - matrix @ VALUES).norm() > 10


def test_what_is_sent_hides_what_it_carries():
    """Correlation of an agent's values with what it sends, squared: 1 / (1 + 2 size²)."""
    values = torch.randn(5, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    masks = Masks(pair_keys("s", RING), range(5))
    masks.begin(RING, 0)
    heard = Heard(MatrixMixer(torch.eye(5), 1))
    MaskedMixer(heard, masks, torch.full((20_000,), 2.0)).mix(values)
    r2 = torch.corrcoef(torch.stack([values[1], heard.heard[1]]))[0, 1] ** 2
    assert r2.item() == pytest.approx(1 / 9, abs=0.02)


def test_values_that_cannot_be_negative_are_at_least_an_nth_of_the_own_value():
    masks = Masks({}, range(3))
    masks.begin(adjacency("complete", 3), 0)
    spoilt = SimpleNamespace(own_share=1 / 3, mix=lambda values: torch.full_like(values, -1.0))
    values = torch.tensor([[6.0, 6.0], [0.0, 0.0], [3.0, 3.0]])
    result = MaskedMixer(spoilt, masks, 1.0, torch.tensor([True, False])).mix(values)
    assert result.tolist() == [[2.0, -1.0], [0.0, -1.0], [1.0, -1.0]]


def test_what_is_left_of_masks_by_hand():
    """Of a lazy pair, (1, -1) becomes half of itself in each round."""
    pair, matrix = adjacency("complete", 2), torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    assert masks_left(matrix, pair, 0) == 1.0
    assert masks_left(matrix, pair, 3) == pytest.approx(0.125)
    assert rounds_to_remove(matrix, pair, 0.01) == 7  # 0.5^7 = 0.0078
    ring_of_three = adjacency("ring", 3)
    assert masks_left(consensus_matrix("uniform", ring_of_three), ring_of_three, 1) == pytest.approx(0, abs=1e-15)
    assert rounds_to_remove(consensus_matrix("uniform", ring_of_three), ring_of_three, 0.01) == 1


def test_who_has_a_single_neighbour():
    assert exposed(RING, range(5)) == []
    assert exposed(adjacency("star", 4), range(4)) == [1, 2, 3]


def test_a_worker_knows_the_masks_of_all_its_agents():
    """On a ring 0 to 4, with 1 and 4 in a worker, 0 has no other neighbours; 2 and 3 hide behind their own mask."""
    assert exposed(RING, [0, 1, 2, 3, 1]) == [0]
    assert exposed(RING, [0, 1, 2, 2, 1]) == [0]
    assert exposed(RING, [0, 0, 1, 1, 2]) == []
    assert exposed(RING, [0] * 5) == []


def learned(optimizer, size, rounds=60, updates=8):
    """Critics of five agents on a ring after some updates, and what one of them sent in the last."""
    generator = torch.Generator().manual_seed(0)
    network = Network(16, 2, generator=generator)
    options = {"step_size": 1e-3, "optimizer": optimizer}
    heard = Heard(MatrixMixer(consensus_matrix("metropolis_hastings", RING), rounds))
    masks = Masks(pair_keys("s", RING), range(5))
    scale, non_negative = gossip_scale(network, 1.0, steps=1, **options)
    mixer = MaskedMixer(heard, masks, size * scale, non_negative) if size else heard
    initial = network.initial_weights(generator).double()
    critic = Critic(network, initial, (5,), mixer, average=False, **options)
    for update in range(updates):
        masks.begin(RING, update)
        before = critic.weights.clone()
        x0, next_x0 = 2**0.5 * torch.randn(2, 1, 4, 16, generator=generator).double()
        reward = torch.randn(5, 4, generator=generator).double()
        critic.update([Transition(x0, reward, next_x0, torch.full((1, 1), 0.5).double())])
    delta = network.forward(before, x0) - reward - 0.5 * network.forward(before, next_x0)
    gradients = [value_and_gradient(network, before, x0[:, [b]], torch.ones_like)[1][1] * -1e-3 / 4 for b in range(4)]
    step = heard.heard[1, : network.n_params] - before[1]
    found = torch.linalg.lstsq(torch.stack(gradients, -1), step.unsqueeze(-1)).solution.squeeze(-1)
    return critic, delta[1], found


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_critics_learn_the_same_behind_masks(optimizer):
    masked, plain = learned(optimizer, 10.0)[0], learned(optimizer, 0.0)[0]
    torch.testing.assert_close(masked.weights, plain.weights, atol=1e-7, rtol=0)
    if optimizer == "adam":
        moments = [critic.state_dict(1)["adam.exp_avg_sq"] for critic in (masked, plain)]
        torch.testing.assert_close(*moments, atol=1e-12, rtol=1e-6)


def test_a_step_no_longer_tells_the_td_errors():
    _, delta, found = learned("sgd", 0.0)
    torch.testing.assert_close(found, delta, atol=1e-6, rtol=1e-6)
    _, delta, found = learned("sgd", 10.0)
    assert (found - delta).norm() > 3 * delta.norm()  # noise


def test_second_moments_stay_positive_when_few_rounds_leave_masks():
    critic = learned("adam", 10.0, rounds=1)[0]
    moments = torch.stack([critic.state_dict(agent)["adam.exp_avg_sq"] for agent in range(5)])
    assert (moments >= 0).all()
    assert critic.weights.isfinite().all()
