"""The coefficients of KL and entropy by hand: literal values after each update."""

import pytest
import torch

from rlhf_marl.algorithm.restraint import EntropyCoefficient, KlCoefficient

EVERYONE = torch.tensor([True, True, True])


def test_the_kl_coefficient_rises_by_at_most_half_of_its_gain_and_falls_by_at_most_a_fifth():
    """Target 0.5: KLs of 0.55, 5 and 0 are off by 10%, and by more than 50% in both directions."""
    kl = KlCoefficient(3, 0.01, 0.5, 0.1)
    kl.update(torch.tensor([0.55, 5.0, 0.0]), EVERYONE)
    torch.testing.assert_close(kl.values, torch.tensor([0.0101, 0.0105, 0.0098]))
    kl.update(torch.tensor([0.5, 5.0, 0.45]), EVERYONE)
    torch.testing.assert_close(kl.values, torch.tensor([0.0101, 0.011025, 0.009702]))


def test_it_stays_between_a_tenth_and_a_hundred_times_its_start():
    kl = KlCoefficient(2, 0.5, 1.0, 4.0)
    for _ in range(40):
        kl.update(torch.tensor([0.0, 9.0]), EVERYONE[:2])
    torch.testing.assert_close(kl.values, torch.tensor([0.05, 50.0]))


def test_without_a_target_it_is_fixed_and_without_a_band_the_bonus_is_zero():
    kl, entropy = KlCoefficient(1, 0.25, None, 1.0), EntropyCoefficient(1, None, 1.0)
    kl.update(torch.tensor([9.0]), EVERYONE[:1])
    entropy.update(torch.tensor([9.0]), EVERYONE[:1])
    assert (kl.values.tolist(), entropy.values.tolist()) == ([0.25], [0.0])
    assert kl.state_dict(0) == entropy.state_dict(0) == {}


def test_the_bonus_grows_below_the_band_shrinks_inside_and_turns_into_a_penalty_above():
    """Band 1 to 2, step 0.1, one agent below, one inside and one above; then all at 1.5."""
    entropy = EntropyCoefficient(3, [1.0, 2.0], 0.1)
    entropy.update(torch.tensor([0.5, 1.5, 4.0]), EVERYONE)
    torch.testing.assert_close(entropy.values, torch.tensor([0.05, 0.0, -0.2]))
    entropy.update(torch.tensor([0.8, 1.0, 2.5]), EVERYONE)
    torch.testing.assert_close(entropy.values, torch.tensor([0.07, 0.0, -0.25]))
    for expected in ([0.02, 0.0, -0.2], [0.0, 0.0, -0.15]):
        entropy.update(torch.tensor([1.5, 1.5, 1.5]), EVERYONE)
        torch.testing.assert_close(entropy.values, torch.tensor(expected))


def test_bonus_and_penalty_are_at_most_one():
    entropy = EntropyCoefficient(2, [1.0, 2.0], 10.0)
    entropy.update(torch.tensor([0.0, 9.0]), EVERYONE[:2])
    assert entropy.values.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_an_agent_without_a_step_or_a_finite_measurement_keeps_its_coefficient(odd):
    kl, entropy = KlCoefficient(3, 0.1, 1.0, 1.0), EntropyCoefficient(3, [1.0, 2.0], 0.1)
    for coefficient in (kl, entropy):
        coefficient.update(torch.tensor([0.0, odd, 0.0]), torch.tensor([False, True, True]))
    torch.testing.assert_close(kl.values, torch.tensor([0.1, 0.1, 0.08]))
    torch.testing.assert_close(entropy.values, torch.tensor([0.0, 0.0, 0.1]))


def test_restored_coefficients_continue_alike():
    measured = torch.tensor([[0.3, 2.0], [0.9, 0.1], [4.0, 1.0]])
    for make in (lambda: KlCoefficient(2, 0.1, 0.5, 1.0), lambda: EntropyCoefficient(2, [0.5, 1.0], 0.1)):
        first, second = make(), make()
        first.update(measured[0], EVERYONE[:2])
        for agent in range(2):
            second.load_state_dict(agent, {name: value.clone() for name, value in first.state_dict(agent).items()})
        for row in measured[1:]:
            first.update(row, EVERYONE[:2])
            second.update(row, EVERYONE[:2])
        assert torch.equal(first.values, second.values)
        with pytest.raises(KeyError):
            second.load_state_dict(0, {})
