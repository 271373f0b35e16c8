"""Log-probabilities and policy gradients against a plain, one-row-at-a-time computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_marl.policy import log_probabilities as policy
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.log_probabilities import evaluate_responses, microbatches
from rlhf_marl.policy.prefix_cache import PrefixCache
from tests.conftest import TINY, tiny_llama, tiny_mistral

STATES = [[5, 6, 7], [9, 8, 7, 6, 5]]
RESPONSES = [[[20, 21, 2], [30, 31, 32, 33]], [[40, 2], [50, 51, 52, 2]], [[60, 61, 62], [70, 2]]]
TEMPERATURE = 0.8


def adapted(model):
    adapters = StackedAdapters(model, [1, 2, 3], rank=2, alpha=4.0, targets="all-linear", where="c")
    adapters.parameters.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(7))
    return model, adapters


@pytest.fixture
def system():
    return adapted(tiny_llama())


def plain(model, adapters, agent: int, state: list[int], response: list[int]):
    """Log-probability, entropy and KL of each token of one response, without padding or batching."""
    ids = torch.tensor([state + response])
    window = slice(len(state) - 1, -1)
    with adapters.use(None):
        base = (model(ids).logits[0, window] / TEMPERATURE).log_softmax(-1)
    with adapters.use(slice(agent, agent + 1)):
        log_policy = (model(ids).logits[0, window] / TEMPERATURE).log_softmax(-1)
    own = torch.distributions.Categorical(logits=log_policy)
    kl = torch.distributions.kl_divergence(own, torch.distributions.Categorical(logits=base))
    return own.log_prob(torch.tensor(response)), own.entropy(), kl


@pytest.mark.parametrize("architecture", [tiny_llama, tiny_mistral])
@pytest.mark.parametrize(
    "states",
    [
        STATES,
        [[5, 6, 7], [5, 6, 7]],
        [[5, 6], [5, 6, 9, 8]],
        [[5], [6, 7]],
        [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10, 11]],
    ],
)
@pytest.mark.parametrize("roles", [[[], [], []], [[3, 4], [], [9, 9, 9]]])
@pytest.mark.parametrize("tokens_per_pass", [1, 20, 10_000])
def test_statistics_and_gradient_equal_the_plain_computation(monkeypatch, tokens_per_pass, roles, states, architecture):
    """Whatever the split into passes and chunks, whether states differ, are alike, begin alike or are one token,
    whether agents read one state or their own role before it, and whether layers see all tokens or a window."""
    model, adapters = adapted(architecture())
    prompts = [[role + state for state in states] for role in roles]
    monkeypatch.setitem(policy.POSITIONS, "cpu", 3)
    signal = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-1.5, 2.5]])
    options = {"temperature": TEMPERATURE, "pad": 0, "kl_coefficient": 0.7, "tokens_per_pass": tokens_per_pass}
    result = evaluate_responses(model, adapters, prompts, RESPONSES, signal=signal, **options)
    batched = adapters.parameters.grad.clone()
    adapters.parameters.grad.zero_()
    for agent in range(3):
        for dialogue in range(2):
            log_probability, entropy, kl = plain(
                model, adapters, agent, prompts[agent][dialogue], RESPONSES[agent][dialogue]
            )
            found = [of[agent, dialogue] for of in (result.log_probability, result.entropy, result.kl)]
            expected = [log_probability.sum(), entropy.mean(), kl.sum()]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            weights = [signal[agent, dialogue] - 0.7 * kl[t + 1 :].sum().detach() for t in range(len(kl))]
            (0.7 * kl.sum() - torch.stack(weights) @ log_probability).backward()
    assert torch.equal(result.importance_weight, torch.ones(3, 2))
    torch.testing.assert_close(batched, adapters.parameters.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tokens_per_pass", [1, 20])
def test_the_gradients_of_kl_and_entropy_with_a_coefficient_per_agent(monkeypatch, system, tokens_per_pass):
    """Against autograd through β_i KL - η_i H at the sampled prefixes; with η = 0 nothing changes, to the last bit."""
    model, adapters = system
    monkeypatch.setitem(policy.POSITIONS, "cpu", 3)
    beta, eta = torch.tensor([0.7, 0.0, 0.1]), torch.tensor([0.5, -0.25, 0.0])

    def gradient(entropy_coefficient):
        adapters.parameters.grad.zero_()
        evaluate_responses(
            model,
            adapters,
            [STATES] * 3,
            RESPONSES,
            temperature=TEMPERATURE,
            pad=0,
            tokens_per_pass=tokens_per_pass,
            signal=torch.ones(3, 2),
            kl_coefficient=beta,
            entropy_coefficient=entropy_coefficient,
        )
        return adapters.parameters.grad.clone()

    with_bonus, without, zero = gradient(eta), gradient(None), gradient(torch.zeros(3))
    assert torch.equal(without, zero)
    assert torch.equal(with_bonus[2], without[2])
    adapters.parameters.grad.zero_()
    for agent in range(3):
        for dialogue in range(2):
            log_probability, entropy, kl = plain(model, adapters, agent, STATES[dialogue], RESPONSES[agent][dialogue])
            weights = [1 - beta[agent] * kl[t + 1 :].sum().detach() for t in range(len(kl))]
            loss = beta[agent] * kl.sum() - eta[agent] * entropy.sum() - torch.stack(weights) @ log_probability
            loss.backward()
    torch.testing.assert_close(with_bonus, adapters.parameters.grad, atol=1e-4, rtol=1e-3)
    assert (with_bonus - without)[:2].norm(dim=-1).min() > 0.01


def enumerated(seed):
    """A model with five words and its 25 responses of two words: (model, adapters, responses)."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**TINY | {"vocab_size": 5}, num_hidden_layers=1)).eval()
    adapters = StackedAdapters(model, [1], rank=2, alpha=4.0, targets="all-linear", where="c")
    adapters.parameters.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return model, adapters, [[a, b] for a in range(5) for b in range(5)]


def expected_direction(model, adapters, responses, signal, old, **options):
    """Mean over responses of π_old of the direction of line 16, from one response at a time."""
    total = torch.zeros_like(adapters.parameters)
    for response, weight, log_old in zip(responses, signal, old, strict=True):
        adapters.parameters.grad.zero_()
        evaluate_responses(
            model,
            adapters,
            [[[1, 2]]],
            [[response]],
            temperature=TEMPERATURE,
            pad=0,
            signal=torch.tensor([[weight]]),
            old_log_probabilities=[[log_old.tolist()]],
            **options,
        )
        total -= log_old.sum().exp() * adapters.parameters.grad
    return total


def test_the_expected_direction_is_the_gradient_of_the_reward_minus_the_responses_kl():
    """Against autograd through Σ_y π(y) [R(y) - β log π(y) / base(y)] over all 25 responses."""
    model, adapters, responses = enumerated(0)
    reward = torch.linspace(-1, 1, 25).roll(7)
    terms, old = [], []
    for response, r in zip(responses, reward, strict=True):
        log_policy, _, _ = plain(model, adapters, 0, [1, 2], response)
        with adapters.use(None):
            logits = model(torch.tensor([[1, 2, *response]])).logits[0, 1:-1] / TEMPERATURE
        log_base = logits.log_softmax(-1)[torch.arange(2), torch.tensor(response)].sum()
        terms.append(log_policy.sum().exp() * (r - 0.7 * (log_policy.sum() - log_base)))
        old.append(log_policy.detach())
    adapters.backward(torch.stack(terms).sum())
    exact = adapters.parameters.grad.clone()
    found = expected_direction(model, adapters, responses, reward.tolist(), old, kl_coefficient=0.7)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-3)


def test_a_policy_updated_since_it_sampled_is_weighted_by_its_probability_ratio():
    """The expected direction under the old policy is the gradient of the new policy's mean reward."""
    model, adapters, responses = enumerated(0)
    with torch.no_grad():
        old = [plain(model, adapters, 0, [1, 2], response)[0] for response in responses]
    adapters.parameters.data += 0.1 * torch.randn(adapters.parameters.shape, generator=torch.Generator().manual_seed(3))
    reward = torch.linspace(-1, 1, 25).roll(7)
    new = [plain(model, adapters, 0, [1, 2], response)[0].sum() for response in responses]
    adapters.backward(torch.stack(new).exp() @ reward)
    exact = adapters.parameters.grad.clone()
    found = expected_direction(model, adapters, responses, reward.tolist(), old)
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-3)
    ratios = [(a.detach() - b.sum()).exp().item() for a, b in zip(new, old, strict=True)]
    assert min(ratios) < 0.9 < 1.1 < max(ratios)


def test_responses_that_are_not_learned_from_have_statistics_and_no_gradient(system):
    """The gradient is that of the other dialogues alone, KL and entropy included."""
    model, adapters = system

    def gradient(columns, learned=None):
        adapters.parameters.grad.zero_()
        found = evaluate_responses(
            model,
            adapters,
            [STATES[columns]] * 3,
            [of_agent[columns] for of_agent in RESPONSES],
            temperature=TEMPERATURE,
            pad=0,
            signal=torch.ones(3, 2)[:, columns],
            kl_coefficient=0.7,
            entropy_coefficient=torch.tensor([0.5, -0.25, 0.1]),
            learned=learned,
        )
        return adapters.parameters.grad.clone(), found.log_probability

    every, log_probability = gradient(slice(None))
    first, _ = gradient(slice(0, 1))
    masked, same = gradient(slice(None), torch.tensor([[True, False], [True, True], [False, False]]))
    assert torch.equal(same, log_probability)
    torch.testing.assert_close(masked[0], first[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(masked[1], every[1])
    assert not masked[2].any()


def test_without_a_signal_no_gradient_is_touched(system):
    model, adapters = system
    evaluate_responses(model, adapters, [STATES] * 3, RESPONSES, temperature=1.0, pad=0)
    assert not adapters.parameters.grad.any()


def test_the_base_model_on_its_own_responses(system):
    """Its entropy equals the plain computation, and its KL is 0."""
    model, adapters = system
    result = evaluate_responses(model, adapters, [STATES] * 3, RESPONSES, temperature=TEMPERATURE, pad=0, agents=None)
    assert not result.kl.any()
    for agent in range(3):
        for dialogue, state in enumerate(STATES):
            response = RESPONSES[agent][dialogue]
            with adapters.use(None), torch.no_grad():
                logits = model(torch.tensor([state + response])).logits[0, len(state) - 1 : -1]
            entropy = torch.distributions.Categorical(logits=logits / TEMPERATURE).entropy().mean()
            torch.testing.assert_close(result.entropy[agent, dialogue], entropy, atol=1e-4, rtol=1e-4)


def test_fresh_adapters_have_no_divergence():
    model = tiny_llama()
    adapters = StackedAdapters(model, [1, 2, 3], rank=2, alpha=4.0, targets="all-linear", where="c")
    result = evaluate_responses(model, adapters, [STATES] * 3, RESPONSES, temperature=1.0, pad=0)
    torch.testing.assert_close(result.kl, torch.zeros(3, 2), atol=1e-5, rtol=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 500), st.integers(1, 500))
def test_blocks_cover_the_grid_once_and_hold_few_tokens(agents, dialogues, shared, rest):
    tiles = list(microbatches(agents, dialogues, shared, rest, 512))
    cells = [(a, d) for agent, dialogue in tiles for a in range(agents)[agent] for d in range(dialogues)[dialogue]]
    assert sorted(cells) == [(a, d) for a in range(agents) for d in range(dialogues)]
    for together, at_once in ((a.stop - a.start, d.stop - d.start) for a, d in tiles):
        tokens = together * (shared + at_once * rest)
        assert tokens <= 512 or together == at_once == 1
    assert [a.start for a, _ in tiles] == sorted(a.start for a, _ in tiles)


def test_a_model_in_half_precision_has_nearly_the_same_gradient():
    """Products in bfloat16, parameters and gradients in float32."""
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model, adapters = adapted(tiny_llama().to(dtype))
        signal = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-1.5, 2.5]])
        evaluate_responses(model, adapters, [STATES] * 3, RESPONSES, temperature=1.0, pad=0, signal=signal)
        gradients.append(adapters.parameters.grad)
    exact, rounded = gradients
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_what_all_states_begin_with_is_read_once_per_agent(system):
    """Not once per pass: the gradients of several passes share one prefill. The base model prefills a state once."""
    model, adapters = system
    read = {True: 0, False: 0}  # with gradients (agents), without (base model)

    def count(_, args, kwargs, output):
        read[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    hook = model.base_model.register_forward_hook(count, with_kwargs=True)
    responses = [[[20, 21]] * 4, [[30, 31]] * 4, [[40, 41]] * 4]
    signal = torch.ones(3, 4)
    prompts = [[[5, 6, 7, 8]] * 4] * 3
    evaluate_responses(model, adapters, prompts, responses, temperature=1.0, pad=0, signal=signal, tokens_per_pass=10)
    hook.remove()
    assert read[True] == 3 * 3 + 12 * 2  # three shared tokens per agent; one more and a response token per row
    assert read[False] == 3 + 12 * 2  # the state but its last token; that and a response token per row


def test_the_base_model_caches_a_state_that_all_dialogues_share(system):
    """The same numbers, and the second time without reading it; states that differ are not cached_prefix."""
    model, adapters = system
    sizes = []
    hook = model.base_model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output[0])))
    prefixes, passes = PrefixCache(), []
    for states in ([[5, 6, 7]] * 2, [[5, 6, 7]] * 2, STATES, STATES):
        sizes.clear()
        ours = evaluate_responses(model, adapters, [states] * 3, RESPONSES, temperature=1.0, pad=0, prefixes=prefixes)
        passes.append(len(sizes))
        again = evaluate_responses(model, adapters, [states] * 3, RESPONSES, temperature=1.0, pad=0)
        torch.testing.assert_close(ours.kl, again.kl, atol=0, rtol=0)
    hook.remove()
    assert passes == [4, 3, 3, 3]  # (base: question) base: responses, agents: beginning and rest
