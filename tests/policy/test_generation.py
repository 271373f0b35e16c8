import pytest
import torch

from rlhf_marl.policy import prefix_cache
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import SamplingKey, sample, sampling_uniforms
from rlhf_marl.policy.generation import generate as generate_with_log_probabilities
from rlhf_marl.policy.prefix_cache import PrefixCache
from tests.conftest import tiny_llama, tiny_mistral


def generate(model, prompts, **options):
    """Only the token ids."""
    return [tokens for tokens, _ in generate_with_log_probabilities(model, prompts, **options)]


PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11]]


@pytest.fixture(params=[0, 64])
def worth_reading(request, monkeypatch):
    """Sets the threshold: a shared prefix always gets its own pass, or never."""
    monkeypatch.setattr(prefix_cache, "_WORTH_READING", request.param)


@pytest.mark.parametrize("prompts", [PROMPTS, [[9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4, 3, 2]]])
@pytest.mark.parametrize("architecture", [tiny_llama, tiny_mistral])
@pytest.mark.usefixtures("worth_reading")
def test_greedy_equals_transformers_own_generate(architecture, prompts):
    model = architecture()
    ours = generate(model, prompts, max_new_tokens=8, stop_tokens=[2])
    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        reference = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0
        )
        assert tokens == reference[0, len(prompt) :].tolist()


def test_rows_do_not_depend_on_their_batch():
    model = tiny_llama()
    uniforms = torch.stack([sampling_uniforms(SamplingKey(0, 0, d, 0), 8) for d in range(3)])
    together = generate(model, PROMPTS, max_new_tokens=8, stop_tokens=[2], uniforms=uniforms)
    alone = [
        generate(model, [p], max_new_tokens=8, stop_tokens=[2], uniforms=uniforms[i : i + 1])[0]
        for i, p in enumerate(PROMPTS)
    ]
    assert together == alone


@pytest.mark.usefixtures("worth_reading")
def test_a_shared_prefix_changes_nothing():
    """Prompts with a shared prefix, or identical ones: reading the prefix once per policy gives the same tokens."""
    model = tiny_llama()
    adapters = StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")
    adapters.parameters.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(7))
    for prompts in ([[5, 6, 7, 8], [5, 6, 9]], [[5, 6, 7], [5, 6, 7]], [[5, 6], [5, 6, 7]]):
        with adapters.use(slice(0, 2)):
            together = generate(model, prompts * 2, max_new_tokens=6, stop_tokens=[2], n_policies=2)
        alone = []
        for agent in range(2):
            with adapters.use(slice(agent, agent + 1)):
                alone += [generate(model, [p], max_new_tokens=6, stop_tokens=[2])[0] for p in prompts]
        assert together == alone


def test_stops_at_an_end_token_and_keeps_it():
    model = tiny_llama()
    free = generate(model, PROMPTS[:1], max_new_tokens=8, stop_tokens=[2])[0]
    stopped = generate(model, PROMPTS[:1], max_new_tokens=8, stop_tokens=[2, free[3]])[0]
    assert stopped == free[: free.index(free[3]) + 1]


def test_sampling_picks_the_interval_that_holds_the_uniform():
    logits = torch.log(torch.tensor([[0.25, 0.5, 0.25]])).expand(5, 3)
    uniforms = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.999], dtype=torch.float64)
    assert sample(logits, uniforms, 1.0)[0].tolist() == [0, 0, 1, 1, 2]


def test_a_broken_distribution_gives_a_token_of_the_vocabulary():
    """Its log-probability is NaN, so that the step is skipped."""
    token, log_probability = sample(torch.full((1, 300), torch.nan), torch.tensor([0.5], dtype=torch.float64), 1.0)
    assert token.item() < 300
    assert log_probability.isnan().all()


def test_temperature_sharpens():
    logits = torch.tensor([[1.0, 0.0]]).expand(1000, 2)
    uniforms = torch.linspace(0, 0.999, 1000, dtype=torch.float64)
    share = (sample(logits, uniforms, 0.5)[0] == 0).double().mean()  # sigmoid(2) = 0.8808
    assert abs(share - 0.8808) < 0.002


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probabilities_are_those_of_the_whole_sequence(temperature):
    """Recomputed in one pass; for greedy decoding at temperature 1."""
    model = tiny_llama()
    uniforms = torch.stack([sampling_uniforms(SamplingKey(0, 0, d, 0), 8) for d in range(3)]) if temperature else None
    options = {"max_new_tokens": 8, "stop_tokens": [2], "uniforms": uniforms, "temperature": temperature}
    for prompt, (tokens, log_probabilities) in zip(
        PROMPTS, generate_with_log_probabilities(model, PROMPTS, **options), strict=True
    ):
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / (temperature or 1.0)).log_softmax(-1)[torch.arange(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(log_probabilities), expected, atol=1e-5, rtol=1e-5)


def test_uniforms_depend_on_each_of_the_four_numbers_alone():
    base = sampling_uniforms(SamplingKey(1, 2, 3, 0), 10)
    assert torch.equal(base, sampling_uniforms(SamplingKey(1, 2, 3, 0), 10))
    assert torch.equal(base[:4], sampling_uniforms(SamplingKey(1, 2, 3, 0), 4))
    for other in [(2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)]:
        assert not torch.equal(base, sampling_uniforms(SamplingKey(*other), 10))


def test_finished_rows_leave_and_the_others_are_unchanged():
    """Two policies whose rows end at different steps: each row equals the row generated alone."""
    model = tiny_llama()
    adapters = StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")
    adapters.parameters.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(7))
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11], [12, 3], [5, 6, 7]]
    uniforms = torch.stack([sampling_uniforms(SamplingKey(0, a, d, 0), 24) for a in range(2) for d in range(5)])
    ends = list(range(0, 100, 12))
    sizes = []
    hook = model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output.logits)))
    with adapters.use(slice(0, 2)):
        together = generate(
            model, prompts * 2, max_new_tokens=24, stop_tokens=ends, uniforms=uniforms, temperature=2.0, n_policies=2
        )
    hook.remove()
    alone = []
    for agent in range(2):
        with adapters.use(slice(agent, agent + 1)):
            for d, prompt in enumerate(prompts):
                u = uniforms[None, 5 * agent + d]
                options = {"max_new_tokens": 24, "stop_tokens": ends, "temperature": 2.0}
                alone += generate(model, [prompt], uniforms=u, **options)
    assert together == alone
    assert len({len(row) for row in together}) > 3
    assert sizes[-1] < 10  # the last steps were made by fewer rows


def test_identical_prompts_of_a_policy_are_read_once():
    model = tiny_llama()
    uniforms = torch.stack([sampling_uniforms(SamplingKey(0, a, 0, 0), 8) for a in range(6)])
    sizes = []
    hook = model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output.logits)))
    together = generate(model, [*PROMPTS, *PROMPTS], max_new_tokens=8, stop_tokens=[2], uniforms=uniforms)
    hook.remove()
    assert sizes[:2] == [3, 6]
    rows = zip([*PROMPTS, *PROMPTS], uniforms, strict=True)
    assert together == [
        generate(model, [p], max_new_tokens=8, stop_tokens=[2], uniforms=u.unsqueeze(0))[0] for p, u in rows
    ]


@pytest.mark.usefixtures("worth_reading")
def test_what_is_remembered_is_read_once_and_changes_nothing():
    model = tiny_llama()
    prefixes, sizes, reads = PrefixCache(most=2), [], []
    hook = model.base_model.register_forward_hook(lambda _, inputs, output: sizes.append(len(output[0])))
    for earlier in ([5, 6], [7], [5, 6], [8], [5, 6], [7]):
        sizes.clear()
        cached_prefix = prefixes.read(model, earlier)
        reads.append(len(sizes))
        for ends in ([[3, 4], [3, 9, 1], [4]], [[3, 4], [3, 9, 1]], [[3, 4]]):
            prompts = [[*earlier, *end] for end in ends]
            ours = generate(model, prompts, max_new_tokens=5, stop_tokens=[2], cached_prefix=cached_prefix)
            assert ours == generate(model, prompts, max_new_tokens=5, stop_tokens=[2])
        assert cached_prefix.get_seq_length() == len(earlier)
    hook.remove()
    assert reads == [1, 1, 0, 1, 0, 1]  # [7] was forgotten for [8]


def test_prefixes_are_neither_shared_nor_cached_with_sliding_window_attention():
    """Padding after a shared prefix would count as tokens of the window."""
    model = tiny_mistral()
    assert PrefixCache().read(model, [5, 6]) is None
    assert prefix_cache.shared_tokens(model, [[[5, 6, 7], [5, 6, 8]]]) == 0
