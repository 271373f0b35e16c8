"""One update by hand: a linear critic whose numbers fit on paper, and the actors against plain autograd."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_marl.algorithm.cooperation import COOPERATIONS
from rlhf_marl.algorithm.critic import Critic
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.network import Linear
from rlhf_marl.algorithm.optimizers import AgentAdam, SignalScale
from rlhf_marl.algorithm.restraint import EntropyCoefficient, KlCoefficient
from rlhf_marl.algorithm.signals import Values
from rlhf_marl.config.schema import ActorConfig
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.dialogue.speakers import Decoding
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.prefix_cache import PrefixCache
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.training.learner import Learner
from tests.conftest import tiny_llama, tiny_tokenizer

TEMPERATURE = 0.8
AVERAGING = torch.full((2, 2), 0.5)
# What the fake features say of each first token: states 10 to 12, responses 20 to 23.
POINTS = {10: (1, 0), 11: (0, 1), 12: (1, 1), 20: (1, 0), 21: (2, 0), 22: (0, 1), 23: (0, 2)}
RESPONSES = [[[20, 30, 2], [21, 31]], [[22, 2], [23, 32, 33, 2]]]


def features(*parts):
    """Sum over the parts (state, responses) of each row: (rows, 2)."""
    return torch.tensor([[POINTS[part[0]] for part in row] for row in zip(*parts, strict=True)]).float().sum(1)


def samples(responses=RESPONSES, old=-1.0):
    return [[Sample(tokens, "", [old] * len(tokens), tokens[-1] == 2) for tokens in agent] for agent in responses]


def turn_of(reward=((1.0, 2.0), (3.0, 1.0)), **changes):
    """Two dialogues and two agents; V(s) = (1, 2) and V(s') = (2, 3) with W(0) = (1, 2)."""
    agents = len(reward)
    options = {
        "number": 0,
        "dialogues": [0, 1],
        "questions": [0, 0],
        "prompts": ["p", "q"],
        "states": [[10], [11]],
        "observations": [[[10], [11]]] * agents,
        "lengths": [1, 1],
        "samples": samples()[:agents],
        "merged": [],
        "next_states": [[11], [12]],
        "reward_raw": torch.tensor(reward) * 10,
        "reward_scaled": torch.tensor(reward),
        "discount": 0.5,
    }
    return Turn(**options | changes)


def learner_of(
    matrix=AVERAGING,
    *,
    rounds=1,
    critic_step=0.4,
    critic_steps=1,
    seeds=(1, 2),
    turn_weight=1.0,
    cooperation="gossip",
    groups=(slice(None),),
    compared=None,
    **actor,
):
    """Adapters away from zero, so that all their numbers have gradients."""
    config = ActorConfig(**{"baseline": "none", "step_size": 0.01, "optimizer": "adam"} | actor)
    model = tiny_llama(layers=1)
    adapters = StackedAdapters(model, seeds, rank=2, alpha=4.0, targets=["q_proj", "down_proj"], where="c")
    for row, seed in zip(adapters.parameters.data, seeds, strict=True):
        row.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    mixer = MatrixMixer(matrix, rounds)
    initial = torch.tensor([1.0, 2.0])
    critic = Critic(Linear(2), initial, (len(seeds),), mixer, step_size=critic_step, average=False)
    adam = None if config.optimizer == "normalised" else AgentAdam(adapters.parameters, config.step_size)
    scale = SignalScale(len(seeds), mixer) if config.optimizer == "scaled_adam" else None
    return Learner(
        numbers=range(len(seeds)),
        actor=config,
        chat_model=ChatModel(model, tiny_tokenizer(), [2]),
        adapters=adapters,
        optimizer=adam,
        scale=scale,
        kl=KlCoefficient(len(seeds), config.kl_coefficient, config.kl_target, config.kl_gain),
        entropy=EntropyCoefficient(len(seeds), config.entropy_band, config.entropy_step_size),
        critic=critic,
        critic_steps=critic_steps,
        learned_rewards=COOPERATIONS[cooperation].rewards,
        features=features,
        mixer=mixer,
        turn_weights=lambda k: turn_weight**k,
        decodings=[Decoding(agents, 4, TEMPERATURE) for agents in groups],
        prefixes=PrefixCache(),
        compared=compared,
    )


def log_probabilities(learner, agent, state, response):
    """Of each token, without batches, padding or caches."""
    with learner.adapters.use(slice(agent, agent + 1)):
        logits = learner.chat_model.model(torch.tensor([[*state, *response]])).logits[0, len(state) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]


def on_policy(learner, turn):
    """The turn with the learner's own log-probabilities of its tokens, as if its policy had sampled them."""
    with torch.no_grad():
        agents = [
            [
                replace(sample, log_probabilities=log_probabilities(learner, agent, state, sample.tokens).tolist())
                for state, sample in zip(turn.states, row, strict=True)
            ]
            for agent, row in enumerate(turn.samples)
        ]
    return replace(turn, samples=agents)


def direction(learner, turn, objective):
    """Gradient of the sum over dialogues of objective(agent, dialogue, log π of each token): (agents, parameters)."""
    learner.adapters.parameters.grad.zero_()
    for agent in range(learner.adapters.n_agents):
        for b, state in enumerate(turn.states):
            logs = log_probabilities(learner, agent, state, turn.tokens[agent][b])
            learner.adapters.backward(objective(agent, b, logs))
    result = learner.adapters.parameters.grad.clone()
    learner.adapters.parameters.grad.zero_()
    return result


def column(rows, name):
    return [row[name] for row in rows]


def test_critic_and_td_errors_by_hand():
    """δ = V - r - V'/2 is (-1, -1.5) and (-3, -0.5): steps to (1.2, 2.3) and (1.6, 2.1), which mix to (1.4, 2.2)."""
    learner = learner_of()
    rows = learner.update([turn_of()])
    torch.testing.assert_close(learner.critic.weights, torch.tensor([[1.4, 2.2], [1.4, 2.2]]))
    assert column(rows, "critic_value") == [1.5, 1.5]
    assert column(rows, "critic_magnitude") == [1.5, 1.5]
    assert column(rows, "critic_gradient_norm") == pytest.approx([math.hypot(0.5, 0.75), math.hypot(1.5, 0.25)])
    assert column(rows, "disagreement_before") == pytest.approx([math.hypot(0.2, 0.1)] * 2)
    assert column(rows, "disagreement_after") == pytest.approx([0, 0], abs=1e-6)
    # With the mixed weights V = (1.4, 2.2), V' = (2.2, 3.6): δ = (-0.7, -1.6) and (-2.7, -0.6).
    assert column(rows, "td_error") == pytest.approx([-1.15, -1.65])
    assert column(rows, "reward_scaled") == [1.5, 2.0]
    assert column(rows, "reward_raw") == [15.0, 20.0]
    assert column(rows, "critic_skipped") == column(rows, "actor_skipped") == [0, 0]
    assert column(rows, "critic_projected") == column(rows, "critic_dead_units") == [0, 0]


@pytest.mark.parametrize(
    ("options", "signal"),
    [
        # r/2 + (V'/2 - V) = r/2 + (-0.3, -0.4)
        ({"credit": "local"}, [[0.2, 0.6], [1.2, 0.1]]),
        ({"credit": "local", "baseline": "leave_one_out"}, [[-0.4, 0.4], [1.1, -1.1]]),
        # minus the mean of (-0.7, -1.6) and (-2.7, -0.6)
        ({"credit": "consensus"}, [[1.7, 1.1], [1.7, 1.1]]),
    ],
)
def test_signals_by_hand_weigh_the_score_functions(options, signal):
    """The step of line 17 goes along Σ_b signal_b ∇ Σ_t log π(a_t)."""
    learner = learner_of(optimizer="normalised", step_size=0.5, **options)
    before, turn = learner.adapters.parameters.detach().clone(), on_policy(learner, turn_of())
    expected = direction(learner, turn, lambda agent, b, logs: signal[agent][b] * logs.sum())
    rows = learner.update([turn])
    assert column(rows, "actor_signal") == pytest.approx([sum(s) / 2 for s in signal], abs=1e-6)
    assert column(rows, "actor_signal_positive") == [sum(x > 0 for x in s) / 2 for s in signal]
    moved = learner.adapters.parameters.detach() - before
    torch.testing.assert_close(moved, 0.5 * expected / expected.norm(dim=-1, keepdim=True), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        torch.tensor(column(rows, "gradient_norm")), expected.norm(dim=-1) / 2, atol=1e-4, rtol=1e-4
    )


def test_dialogues_are_compared_with_those_of_the_same_question_alone():
    rewards, zeros = torch.tensor([[1.0, 2.0, 10.0, 40.0], [0.0, 4.0, 3.0, 3.0]]), torch.zeros(2, 4)
    learner = learner_of(credit="local", baseline="leave_one_out", compared=2)
    _, signal = learner._td_error_and_signal(Values(zeros, zeros, rewards, torch.zeros(1, 1)))
    torch.testing.assert_close(signal, torch.tensor([[-0.5, 0.5, -15.0, 15.0], [-2.0, 2.0, 0.0, 0.0]]))


def test_log_probabilities_and_entropy_are_those_of_the_policy_that_sampled():
    """Measured before the step, at the sampling temperature."""
    learner, turn = learner_of(step_size=0.5), turn_of()
    with torch.no_grad():
        expected = [
            sum(log_probabilities(learner, agent, turn.states[b], RESPONSES[agent][b]).sum().item() for b in range(2))
            for agent in range(2)
        ]
    rows = learner.update([turn])
    assert column(rows, "log_probability") == pytest.approx([total / 2 for total in expected], abs=1e-4)
    assert all(0 < row["entropy"] < math.log(259) for row in rows)
    assert all(row["kl"] > 0 for row in rows)


def test_truncated_responses_move_no_actor_if_they_are_masked():
    turn, moved = turn_of(), {}
    turn.samples[1] = [replace(sample, finished=False) for sample in turn.samples[1]]
    for mask in (False, True):
        learner = learner_of(mask_truncated=mask, kl_coefficient=0.5)
        learner.update([turn])
        moved[mask] = learner.adapters.parameters.grad.any(-1).tolist()
    assert moved == {False: [True, True], True: [True, False]}


def test_ppo_clip_ascends_the_clipped_surrogate():
    signal, old = [[0.2, 0.6], [1.2, 0.1]], math.log(1 / 259)  # near a random model's own: some ratios are clipped
    learner = learner_of(objective="ppo_clip", clip_range=0.3, optimizer="normalised")
    turn, ratios = turn_of(samples=samples(old=old)), []

    def surrogate(agent, b, logs):
        ratio = torch.exp(logs - old)
        ratios.extend(ratio.tolist())
        return torch.minimum(ratio * signal[agent][b], ratio.clamp(0.7, 1.3) * signal[agent][b]).sum()

    expected = direction(learner, turn, surrogate)
    assert min(ratios) < 1.3 < max(ratios)
    learner.update([turn])
    torch.testing.assert_close(learner.adapters.parameters.grad, -expected / 2, atol=1e-5, rtol=1e-3)


def test_m_turns_average_their_directions():
    """With constant critics, M = 2 is the mean of two updates of one turn."""
    one, other = turn_of(), turn_of(((-1.0, 0.5), (0.0, 4.0)), states=[[12], [10]])
    gradients = []
    for turns in ([one], [other], [one, other]):
        learner = learner_of(critic_step=0.0, optimizer="normalised")
        rows = learner.update([on_policy(learner, turn) for turn in turns])
        gradients.append(learner.adapters.parameters.grad.clone())
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-3)
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2, atol=1e-6, rtol=1e-4)
    assert column(rows, "reward_scaled") == [(1 + 2 - 1 + 0.5) / 4, (3 + 1 + 0 + 4) / 4]


def test_later_turns_weigh_less_where_turns_are_discounted():
    """Turn 2 with γ = 1/2: a quarter of the direction and of the KL penalty, and a quarter of the steps' scale."""
    rows, gradients = {}, {}
    for weight in (1.0, 0.5):
        learner = learner_of(critic_step=0.0, turn_weight=weight, kl_coefficient=0.3, optimizer="scaled_adam")
        rows[weight] = learner.update([on_policy(learner, turn_of(((0.1, 0.2), (0.3, 0.1)), number=2))])
        gradients[weight] = learner.adapters.parameters.grad.clone()
    torch.testing.assert_close(gradients[0.5], gradients[1.0] / 4, atol=1e-7, rtol=1e-5)
    for full, quarter in zip(rows[1.0], rows[0.5], strict=True):
        assert quarter["actor_signal"] == full["actor_signal"]


def test_k_critic_steps_go_over_the_turns_in_order_and_begin_again():
    """W(0) = (1, 2), one agent, β = 1/2, discount 0: V of the one state moves half way to each reward in turn."""
    turns = [turn_of(((reward, reward),), states=[[10], [10]], discount=0.0) for reward in (3.0, 1.0)]
    found = {}
    for steps in (1, 2, 3):
        learner = learner_of(torch.ones(1, 1), critic_step=0.5, critic_steps=steps, seeds=(1,))
        learner.update(turns)
        found[steps] = learner.critic.weights.tolist()
    assert found == {1: [[2.0, 2.0]], 2: [[1.5, 2.0]], 3: [[2.25, 2.0]]}


def test_each_agents_gradient_is_clipped_to_the_norm_by_itself():
    """Adam's first moment is a tenth of the gradient."""
    free = learner_of(credit="local")
    free.update([turn_of()])
    norms = free.adapters.parameters.grad.norm(dim=-1)
    most = norms.mean().item()
    assert norms.min() < most < norms.max()
    clipped = learner_of(credit="local", max_gradient_norm=most)
    rows = clipped.update([turn_of()])
    for agent in range(2):
        whole, given = (x.optimizer.state_dict(agent)["exp_avg"] * 10 for x in (free, clipped))
        assert given.norm().item() == pytest.approx(min(most, norms[agent].item()), rel=1e-4)
        torch.testing.assert_close(given / given.norm(), whole / whole.norm())
    assert column(rows, "gradient_norm") == pytest.approx(norms.tolist())  # told as it was before


@pytest.mark.parametrize("optimizer", ["adam", "normalised"])
def test_an_agent_without_a_finite_gradient_keeps_everything_and_the_others_do_not_notice(optimizer):
    # No gossip: what is not finite stays with agent 0.
    spoiled, fine = (learner_of(rounds=0, optimizer=optimizer) for _ in range(2))
    alone = learner_of(torch.ones(1, 1), seeds=(2,), optimizer=optimizer)
    for learner in (spoiled, fine):
        learner.update([turn_of()])
    first = turn_of(((3.0, 1.0),), samples=samples()[1:])
    alone.update([first])
    weights = spoiled.adapters.parameters.detach().clone()
    state = {name: x.clone() for name, x in spoiled.optimizer.state_dict(0).items()} if spoiled.optimizer else {}
    rows = spoiled.update([turn_of(((float("inf"), 2.0), (3.0, 1.0)))])
    fine.update([turn_of()])
    alone.update([first])
    assert column(rows, "actor_skipped") == column(rows, "critic_skipped") == [1, 0]
    assert not math.isfinite(rows[0]["gradient_norm"])
    after = spoiled.adapters.parameters.detach()
    assert torch.equal(after[0], weights[0])
    assert spoiled.critic.weights.isfinite().all()
    if spoiled.optimizer:
        assert state["step"].item() == 1
        assert all(torch.equal(x, state[name]) for name, x in spoiled.optimizer.state_dict(0).items())
        assert spoiled.optimizer.state_dict(1)["step"].item() == 2
    assert not torch.equal(after[1], weights[1])
    assert torch.equal(after[1], fine.adapters.parameters.detach()[1])
    torch.testing.assert_close(after[1], alone.adapters.parameters.detach()[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(spoiled.critic.weights[1], alone.critic.weights[0])


def test_q_critics_read_the_responses_of_all_agents_and_q_value_needs_no_reward():
    """x = state + responses: (1, 0) + (1, 0) + (0, 1) and (0, 1) + (2, 0) + (0, 2), so Q = (4, 8) with W(0)."""
    gradients = []
    for reward in (((1.0, 2.0), (3.0, 1.0)), ((-5.0, 0.0), (0.0, 9.0))):
        learner = learner_of(critic_step=0.0, signal="q_value", credit="consensus", optimizer="normalised")
        rows = learner.update([turn_of(reward, next_samples=samples())])
        assert column(rows, "actor_signal") == column(rows, "critic_value") == [6.0, 6.0]
        gradients.append(learner.adapters.parameters.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].norm() > 0


@pytest.mark.parametrize(
    ("cooperation", "td_error"),
    [
        # Rewards (1, 2) and (3, 1); V = (1, 2), V'/2 = (1, 1.5): δ = V - r - V'/2 is (0, 0.5) - r.
        ("gossip", [-1.25, -1.75]),
        ("centralised", [-1.5, -1.5]),
        ("minimum", [-0.75, -0.75]),
        ("placebo", [0.25, 0.25]),
    ],
)
def test_rewards_that_agents_learn_from(cooperation, td_error):
    learner = learner_of(critic_step=0.0, cooperation=cooperation, credit="consensus")
    rows = learner.update([turn_of()])
    assert column(rows, "td_error") == pytest.approx(td_error)
    assert column(rows, "reward_scaled") == [1.5, 2.0]  # its own, whatever it learns from


def test_returns_without_a_critic_by_hand():
    """γ = 1/2, two turns: the first earned (1, 2) and (3, 1) and then half of (4, 0) and (2, 2)."""
    learner = learner_of(signal="return", credit="consensus")
    before = learner.critic.weights.clone()
    rows = learner.update([turn_of(), turn_of(((4.0, 0.0), (2.0, 2.0)), number=1, discount=0.0)])
    # Returns (3, 2) and (4, 2), then (4, 0) and (2, 2); gossip averages the agents: (3.5, 2) and (3, 1).
    assert column(rows, "actor_signal") == pytest.approx([(3.5 + 2 + 3 + 1) / 4] * 2)
    assert torch.equal(learner.critic.weights, before)
    assert column(rows, "critic_value") == [0.0, 0.0]
    assert learner.value(turn_of()) is None
    assert learner.gossiped([turn_of(), turn_of()]) == 4 * 4


def test_q_value_gossips_no_td_errors():
    """Two critic weights, and two TD errors a turn where they are exchanged."""
    assert learner_of().gossiped([turn_of(), turn_of()]) == 4 * (2 + 4)
    assert learner_of(signal="q_value", credit="consensus").gossiped([turn_of(), turn_of()]) == 4 * 2
    assert learner_of(optimizer="scaled_adam").gossiped([turn_of()]) == 4 * (2 + 2 + 1)


def test_a_q_critics_target_reads_the_next_responses():
    """Next x = (0, 1) + (2, 0) + (0, 2) and (1, 1) + (1, 0) + (0, 1), so Q' = (8, 6) beside Q = (4, 8)."""
    learner = learner_of(critic_step=0.0, signal="td_q", credit="consensus", optimizer="normalised")
    swapped = samples([agent[::-1] for agent in RESPONSES])
    rows = learner.update([turn_of(next_samples=swapped)])
    # δ = Q - r - Q'/2 = (-1, 3) and (-3, 4), mixed (-2, 3.5).
    assert column(rows, "td_error") == [1.0, 0.5]
    assert column(rows, "actor_signal") == [-0.75, -0.75]


def test_the_kl_penalty_pulls_towards_the_base_model():
    """Without a signal the KL penalty is the only term: a step must lower the divergence."""
    learner = learner_of(critic_step=0.0, optimizer="normalised", step_size=0.05, kl_coefficient=1.0)
    zero = turn_of(((0.0, 0.0), (0.0, 0.0)), states=[[10], [10]], next_states=[[10], [10]], discount=0.0)
    learner.critic.weights.zero_()
    before = learner.update([zero])
    learner.critic.weights.zero_()
    after = learner.update([zero])
    assert column(before, "actor_signal") == [0.0, 0.0]
    assert all(new < old for new, old in zip(column(after, "kl"), column(before, "kl"), strict=True))


def test_agents_that_sample_in_groups_learn_as_in_one():
    """Their statistics and gradients do not depend on who shares a batch."""
    found = []
    for groups in ((slice(None),), (slice(0, 1), slice(1, 2))):
        learner = learner_of(groups=groups, kl_coefficient=0.1)
        rows = learner.update([turn_of()])
        found.append((rows, learner.adapters.parameters.detach().clone()))
    (one, together), (two, apart) = found
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-4)
    for key in ("log_probability", "kl", "entropy", "gradient_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4)
