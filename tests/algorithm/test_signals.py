"""The actor signals against exact gradients of a small multi-agent problem, enumerated."""

import itertools

import pytest
import torch

from rlhf_marl.algorithm.actor import leave_one_out
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.signals import Values, actor_signal, critic_kind, td_error
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix

N, S, A, GAMMA = 2, 3, 2, 0.9
JOINT = list(itertools.product(range(A), repeat=N))
AVERAGING = MatrixMixer(consensus_matrix("uniform", adjacency("complete", N)), 10)

_generator = torch.Generator().manual_seed(0)
TRANSITION = torch.rand(S, len(JOINT), S, dtype=torch.float64, generator=_generator)
TRANSITION /= TRANSITION.sum(-1, keepdim=True)
REWARD = torch.randn(N, S, A, dtype=torch.float64, generator=_generator)  # r^i(s, a^i)
THETA = torch.randn(N, S, A, dtype=torch.float64, generator=_generator)
TEAM_REWARD = torch.randn(N, S, len(JOINT), dtype=torch.float64, generator=_generator)  # r^i(s, a), of all actions
START = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def joint_policy(theta):
    policy = theta.softmax(-1)
    return torch.stack([torch.stack([policy[i, :, a[i]] for i in range(N)]).prod(0) for a in JOINT], dim=-1)  # (S, |A|)


def local_rewards(team_weight=0.0):
    """(N, S, joint actions): of the own action, of all agents' actions (weight 1), or of both."""
    own = torch.stack([torch.stack([REWARD[i, :, a[i]] for a in JOINT], dim=-1) for i in range(N)])
    return (1 - team_weight) * own + team_weight * TEAM_REWARD


def exact(theta, team_weight=0.0):
    """V (S,), Q (S, joint) of the mean reward, and the discounted visitation η (S,)."""
    pi = joint_policy(theta)
    chain = torch.einsum("sa,sat->st", pi, TRANSITION)
    team = local_rewards(team_weight).mean(0)
    identity = torch.eye(S, dtype=torch.float64)
    v = torch.linalg.solve(identity - GAMMA * chain, (pi * team).sum(-1))
    q = team + GAMMA * TRANSITION @ v
    visitation = torch.linalg.solve(identity - GAMMA * chain.T, START)
    return v, q, visitation


def objective(theta, team_weight):
    return START @ exact(theta, team_weight)[0]


def finite_difference_gradient(team_weight=0.0):
    gradient, step = torch.zeros_like(THETA), 1e-6
    for index in itertools.product(range(N), range(S), range(A)):
        up, down = THETA.clone(), THETA.clone()
        up[index] += step
        down[index] -= step
        gradient[index] = (objective(up, team_weight) - objective(down, team_weight)) / (2 * step)
    return gradient


def samples():
    """Every (s, a, s', a') as one batch: indices and probabilities η(s) π(a|s) P(s'|s,a) π(a'|s')."""
    pi, (_, _, visitation) = joint_policy(THETA), exact(THETA)
    rows = torch.tensor(list(itertools.product(range(S), range(len(JOINT)), range(S), range(len(JOINT)))))
    s, a, s2, a2 = rows.T
    return s, a, s2, a2, visitation[s] * pi[s, a] * TRANSITION[s, a, s2] * pi[s2, a2]


def signal_of(name, credit, mixer=AVERAGING, team_weight=0.0):
    v, q, _ = exact(THETA, team_weight)
    s, a, s2, a2, _ = samples()
    counterfactual = None
    if critic_kind(name) == "v":
        value, next_value = v[s], v[s2]
    elif critic_kind(name) == "none":  # the return that followed has the mean V(s')
        value, next_value = torch.zeros_like(v[s]), v[s2]
    else:
        value, next_value = q[s, a], q[s2, a2]
        own = THETA.softmax(-1)
        counterfactual = torch.zeros(N, len(s), dtype=torch.float64)
        for i in range(N):
            for action in range(A):
                other = torch.tensor([JOINT.index((*j[:i], action, *j[i + 1 :])) for j in JOINT])
                counterfactual[i] += own[i, s, action] * q[s, other[a]]
    return actor_signal(
        name,
        credit,
        mixer,
        Values(
            value=value.expand(N, -1),
            next_value=next_value.expand(N, -1),
            reward=local_rewards(team_weight)[:, s, a],
            discount=torch.full((1, 1), GAMMA, dtype=torch.float64),
            counterfactual_value=counterfactual,
        ),
    )


def scores():
    """∇ log π^i(a^i | s) for every sample: (N, samples, S, A)."""
    s, a, *_ = samples()
    result = torch.zeros(N, len(s), S, A, dtype=torch.float64)
    for i in range(N):
        own = torch.tensor([j[i] for j in JOINT])[a]
        result[i, torch.arange(len(s)), s] = torch.nn.functional.one_hot(own, A).double() - THETA.softmax(-1)[i, s]
    return result


def expected_direction(name, credit, mixer=AVERAGING, team_weight=0.0):
    return torch.einsum("b,ib,ibsa->isa", samples()[-1], signal_of(name, credit, mixer, team_weight), scores())


UNBIASED = ("td_v", "return", "q_value", "counterfactual")


@pytest.mark.parametrize(
    ("signal", "credit"),
    [(name, "consensus") for name in UNBIASED] + [("td_v", "local"), ("return", "local")],
)
def test_expected_direction_is_the_policy_gradient(signal, credit):
    torch.testing.assert_close(expected_direction(signal, credit), finite_difference_gradient(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("team_weight", [0.3, 1.0])
@pytest.mark.parametrize("signal", UNBIASED)
def test_it_also_is_where_rewards_are_of_all_agents_actions(signal, team_weight):
    """As with reward.of team and both. Local credit would leave out rewards that the own action changes."""
    exact = finite_difference_gradient(team_weight)
    found = expected_direction(signal, "consensus", team_weight=team_weight)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-5)
    if signal == "td_v":
        assert (expected_direction("td_v", "local", team_weight=team_weight) - exact).abs().max() > 0.01


@pytest.mark.parametrize(("signal", "credit"), [("td_v", "consensus"), ("td_v", "local"), ("return", "consensus")])
def test_leaving_one_out_keeps_the_expected_direction(signal, credit):
    """Over every pair of independent samples: half the sum of both samples' directions."""
    probability, values, score = samples()[-1], signal_of(signal, credit), scores()
    pairs = torch.stack(torch.broadcast_tensors(values[:, :, None], values[:, None, :]), dim=-1)  # (N, b, c, 2)
    corrected = leave_one_out(pairs, 2)[..., 0]  # of sample b; c is the other
    found = torch.einsum("b,c,ibc,ibsa->isa", probability, probability, corrected, score) / probability.sum()
    torch.testing.assert_close(found, finite_difference_gradient(), atol=1e-6, rtol=1e-5)


def test_the_td_error_of_an_exact_q_critic_is_no_advantage():
    """E[δ | s, a] = 0 for every (s, a): the better the critic, the less information the paper's signal carries."""
    signal = signal_of("td_q", "consensus")[0]
    s, a, _, _, probability = samples()
    for state, action in itertools.product(range(S), range(len(JOINT))):
        here = (s == state) & (a == action)
        assert (probability[here] @ signal[here]).item() == pytest.approx(0, abs=1e-10)
    assert expected_direction("td_q", "consensus").abs().max() < 1e-10
    assert finite_difference_gradient().abs().max() > 0.01


@pytest.mark.parametrize("self_weight", [1 / N, 0.7, 0.95])
def test_local_credit_is_the_policy_gradient_of_the_mean_after_any_number_of_rounds(self_weight):
    """The own reward weighs 1/N, not (A^t)_ii; consensus credit is right only where gossip averages."""
    others = (1 - self_weight) / (N - 1)
    mixer = MatrixMixer(torch.full((N, N), others, dtype=torch.float64).fill_diagonal_(self_weight), 1)
    exact = finite_difference_gradient()
    torch.testing.assert_close(expected_direction("td_v", "local", mixer), exact, atol=1e-6, rtol=1e-5)
    error = (expected_direction("td_v", "consensus", mixer) - exact).abs().max()
    assert (error < 1e-6) == (self_weight == 1 / N)


def test_without_gossip_local_credit_is_an_independent_actor_critic():
    """r^i + γ V(s') - V(s), as with consensus credit without gossip: the own reward has full weight."""
    alone = MatrixMixer(torch.eye(N, dtype=torch.float64), 0)
    torch.testing.assert_close(signal_of("td_v", "local", alone), signal_of("td_v", "consensus", alone))


def test_the_literal_signal_has_the_opposite_sign():
    for credit in ("consensus", "local"):
        torch.testing.assert_close(signal_of("td_q_literal", credit), -signal_of("td_q", credit))


def test_local_credit_has_lower_variance_given_the_state():
    """The variance around each state's mean, which a state-dependent baseline cannot remove."""
    s, _, _, _, probability = samples()
    variance = {}
    for credit in ("local", "consensus"):
        signal = signal_of("td_v", credit)[0]
        parts = []
        for state in range(S):
            weight = probability[s == state] / probability[s == state].sum()
            mean = weight @ signal[s == state]
            parts.append((weight @ (signal[s == state] - mean).square()).item())
        variance[credit] = sum(parts)
    assert variance["local"] < 0.9 * variance["consensus"]


def test_consensus_signal_by_hand():
    """Two agents, full averaging: δ = (1, 3) and (2, 2) mix to (1.5, 2.5) for both; the signal is its negative."""
    value = torch.tensor([[5.0, 5.0], [5.0, 5.0]])
    reward = torch.tensor([[3.0, 1.0], [2.0, 2.0]])
    next_value = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    discount = torch.tensor([[0.5]])
    torch.testing.assert_close(td_error(value, reward, next_value, discount), torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    values, mixer = Values(value, next_value, reward, discount), MatrixMixer(torch.full((2, 2), 0.5), 1)
    signal = actor_signal("td_v", "consensus", mixer, values)
    torch.testing.assert_close(signal, torch.tensor([[-1.5, -2.5], [-1.5, -2.5]]))
    # Local: r^i / 2 + 0.5 * 2 - 5.
    local = actor_signal("td_v", "local", mixer, values)
    torch.testing.assert_close(local, torch.tensor([[-2.5, -3.5], [-3.0, -3.0]]))


@pytest.mark.parametrize(
    ("signal", "credit", "message"),
    [
        ("td", "local", "'td' is not an actor signal"),
        ("td_v", "own", "'own' is not a credit"),
        ("q_value", "local", "local needs a signal with an immediate reward"),
        ("counterfactual", "consensus", "actions that can be enumerated"),
    ],
)
def test_impossible_choices_are_refused(signal, credit, message):
    z = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=message):
        actor_signal(signal, credit, MatrixMixer(torch.eye(2), 1), Values(z, z, z, z))
