"""Log-probabilities and policy gradients against a plain, one-row-at-a-time computation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_marl.policy import log_probabilities as policy
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.log_probabilities import evaluate_responses, microbatches
from rlhf_marl.policy.prefix_cache import PrefixCache
from tests.conftest import tiny_llama, tiny_mistral

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
    """Log-probability, mean entropy and summed KL of one response, without padding or batching."""
    ids = torch.tensor([state + response])
    window = slice(len(state) - 1, -1)
    with adapters.use(None):
        base = (model(ids).logits[0, window] / TEMPERATURE).log_softmax(-1)
    with adapters.use(slice(agent, agent + 1)):
        log_policy = (model(ids).logits[0, window] / TEMPERATURE).log_softmax(-1)
    log_probability = sum(log_policy[t, token] for t, token in enumerate(response))
    own = torch.distributions.Categorical(logits=log_policy)
    kl = torch.distributions.kl_divergence(own, torch.distributions.Categorical(logits=base)).sum()
    return log_probability, own.entropy().mean(), kl


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
@pytest.mark.parametrize("tokens_per_pass", [1, 20, 10_000])
def test_statistics_and_gradient_equal_the_plain_computation(monkeypatch, tokens_per_pass, states, architecture):
    """Whatever the split into passes and chunks, whether states differ, are alike, begin alike or are one token, and
    whether layers see all tokens or a window."""
    model, adapters = adapted(architecture())
    monkeypatch.setattr(policy, "POSITIONS", 3)
    monkeypatch.setattr(policy, "TOKENS_PER_MICROBATCH", tokens_per_pass)
    signal = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-1.5, 2.5]])
    result = evaluate_responses(
        model, adapters, states, RESPONSES, temperature=TEMPERATURE, pad=0, signal=signal, kl_coefficient=0.7
    )
    batched = adapters.parameters.grad.clone()
    adapters.parameters.grad.zero_()
    for agent in range(3):
        for dialogue in range(2):
            log_probability, entropy, kl = plain(model, adapters, agent, states[dialogue], RESPONSES[agent][dialogue])
            torch.testing.assert_close(result.log_probability[agent, dialogue], log_probability, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(result.entropy[agent, dialogue], entropy, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(result.kl[agent, dialogue], kl, atol=1e-4, rtol=1e-4)
            (0.7 * kl - signal[agent, dialogue] * log_probability).backward()
    torch.testing.assert_close(batched, adapters.parameters.grad, atol=1e-4, rtol=1e-3)


def test_without_a_signal_no_gradient_is_touched(system):
    model, adapters = system
    evaluate_responses(model, adapters, STATES, RESPONSES, temperature=1.0, pad=0)
    assert not adapters.parameters.grad.any()


def test_the_base_model_on_its_own_responses(system):
    """Its entropy is that of the plain computation, and it does not differ from itself."""
    model, adapters = system
    result = evaluate_responses(model, adapters, STATES, RESPONSES, temperature=TEMPERATURE, pad=0, agents=None)
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
    result = evaluate_responses(model, adapters, STATES, RESPONSES, temperature=1.0, pad=0)
    torch.testing.assert_close(result.kl, torch.zeros(3, 2), atol=1e-5, rtol=0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 500), st.integers(1, 500))
def test_blocks_cover_the_grid_once_and_hold_few_tokens(agents, dialogues, shared, rest):
    tiles = list(microbatches(agents, dialogues, shared, rest))
    cells = [(a, d) for agent, dialogue in tiles for a in range(agents)[agent] for d in range(dialogues)[dialogue]]
    assert sorted(cells) == [(a, d) for a in range(agents) for d in range(dialogues)]
    for together, at_once in ((a.stop - a.start, d.stop - d.start) for a, d in tiles):
        tokens = together * (shared + at_once * rest)
        assert tokens <= policy.TOKENS_PER_MICROBATCH or together == at_once == 1
    assert [a.start for a, _ in tiles] == sorted(a.start for a, _ in tiles)


def test_what_all_states_begin_with_is_read_once_per_agent(system, monkeypatch):
    """Not once per pass: the gradients of several passes go through one reading. The base model reads a state once."""
    model, adapters = system
    monkeypatch.setattr(policy, "TOKENS_PER_MICROBATCH", 10)
    read = {True: 0, False: 0}  # with gradients (agents), without (base model)

    def count(_, args, kwargs, output):
        read[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    hook = model.base_model.register_forward_hook(count, with_kwargs=True)
    responses = [[[20, 21]] * 4, [[30, 31]] * 4, [[40, 41]] * 4]
    signal = torch.ones(3, 4)
    evaluate_responses(model, adapters, [[5, 6, 7, 8]] * 4, responses, temperature=1.0, pad=0, signal=signal)
    hook.remove()
    assert read[True] == 3 * 3 + 12 * 2  # three shared tokens per agent; one more and a response token per row
    assert read[False] == 3 + 12 * 2  # the state but its last token; that and a response token per row


def test_the_base_model_remembers_a_state_that_all_dialogues_share(system):
    """The same numbers, and the second time without reading it; states that differ are not cached_prefix."""
    model, adapters = system
    sizes = []
    hook = model.base_model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output[0])))
    prefixes, passes = PrefixCache(), []
    for states in ([[5, 6, 7]] * 2, [[5, 6, 7]] * 2, STATES, STATES):
        sizes.clear()
        ours = evaluate_responses(model, adapters, states, RESPONSES, temperature=1.0, pad=0, prefixes=prefixes)
        passes.append(len(sizes))
        again = evaluate_responses(model, adapters, states, RESPONSES, temperature=1.0, pad=0)
        torch.testing.assert_close(ours.kl, again.kl, atol=0, rtol=0)
    hook.remove()
    assert passes == [4, 3, 3, 3]  # (base: question) base: responses, agents: beginning and rest
