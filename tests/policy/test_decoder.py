"""The straight-line decoder against the module tree: the same tokens and log-probabilities."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlhf_marl.policy import decoder_reference
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.decoder import Decoder, Fused
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.loading import hide_absent_tokens
from rlhf_marl.policy.prefix_cache import PrefixCache
from tests.conftest import tiny_mistral, tiny_tokenizer

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4], [11], [5, 6, 7]]
SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def llama3_scaled():
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=scaling, max_position_embeddings=128))


def qwen():
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))  # its query, key and value layers have biases
    for layer in model.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(linear.bias)
    return model


@pytest.fixture(params=[llama, llama3_scaled, qwen])
def model(request):
    torch.manual_seed(0)
    return request.param().eval().to(DEVICE)


def with_adapters(model, targets="all-linear"):
    adapters = StackedAdapters(model, [1, 2, 3], rank=2, alpha=4.0, targets=targets, where="c")
    adapters.parameters.data += 0.3 * torch.randn_like(adapters.parameters)
    return adapters


def with_cached_prefix(model):
    """Prompts that begin alike, and options of greedy generation with that beginning in a prefix cache."""
    prefix = [5, 6, 7, 8]
    options = {"max_new_tokens": 12, "stop_tokens": [2, 17], "cached_prefix": PrefixCache().read(model, prefix)}
    return [[*prefix, *prompt] for prompt in PROMPTS], options


def uniforms(rows, tokens=12):
    return torch.rand(rows, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def assert_same(ours, theirs):
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
    for (_, log_probabilities), (_, expected) in zip(ours, theirs, strict=True):
        assert log_probabilities == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("agents", [slice(None), slice(1, 3), slice(2, 3)])
def test_agents_sample_as_by_the_module_tree(model, agents, targets):
    assert Decoder.supports(model)
    adapters = with_adapters(model, targets)
    n = len(range(3)[agents])
    options = {"max_new_tokens": 12, "stop_tokens": [2], "uniforms": uniforms(n * len(PROMPTS)), "temperature": 0.7}
    with adapters.use(agents):
        prompts = PROMPTS * n
        expected = generate(model, prompts, n_policies=n, **options)
        decoder = Decoder(model, adapters)
        assert_same(decoder.generate(prompts, agents=agents, **options), expected)
        adapters.parameters.data *= 0.5  # as an update does
        assert_same(
            decoder.generate(prompts, agents=agents, **options), generate(model, prompts, n_policies=n, **options)
        )


def test_the_base_model_decodes_greedily_with_adapters_off_and_a_cached_prefix(model):
    adapters = with_adapters(model)
    prompts, options = with_cached_prefix(model)
    with adapters.use(None):
        expected = generate(model, prompts, **options)
        assert_same(Decoder(model, adapters).generate(prompts, **options), expected)
        assert_same(Decoder(model, None).generate(prompts, **options), expected)


def test_tokens_that_the_tokenizer_lacks_are_not_sampled(model):
    """The embedding has 384 rows, the tokenizer 259."""
    hide_absent_tokens(model, tiny_tokenizer())
    options = {"max_new_tokens": 12, "stop_tokens": [2], "uniforms": uniforms(len(PROMPTS))}
    rows = Decoder(model, None).generate(PROMPTS, **options)
    assert max(token for tokens, _ in rows for token in tokens) < 259
    assert_same(rows, generate(model, PROMPTS, **options))


def test_rows_that_have_ended_stop_the_decoding(model, monkeypatch):
    """Every token ends a response here, so after the first look nothing is decoded."""
    decoder = Decoder(model, None)
    counted = []
    logits = Decoder._logits
    monkeypatch.setattr(Decoder, "_logits", lambda *arguments: counted.append(1) or logits(*arguments))
    rows = decoder.generate(PROMPTS, max_new_tokens=60, stop_tokens=list(range(384)))
    assert [len(tokens) for tokens, _ in rows] == [1, 1, 1, 1]
    if DEVICE == "cpu":  # a recorded step does not pass here
        assert len(counted) == 15


def test_models_that_the_straight_line_does_not_compute():
    assert not Decoder.supports(tiny_mistral())  # a sliding window
    gelu = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert not Decoder.supports(gelu)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    assert not Decoder.supports(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))


@pytest.mark.skipif(DEVICE == "cpu", reason="the kernels need a GPU")
@pytest.mark.parametrize("active", [range(3), range(1, 2), range(0)])
def test_kernels_compute_their_definition(active):
    from rlhf_marl.policy import decoder_kernels

    torch.manual_seed(0)
    rows, heads, kv_heads, size, capacity, rank = 6, 8, 2, 32, 128, 4
    device = torch.device("cuda")

    def fused(*widths):
        out = sum(widths)
        y = torch.randn(rows, out + (3 * len(widths) * rank if active else 0), device=device)
        return y, Fused(torch.empty(0), None, torch.randn(3, rank, out, device=device), [None] * len(widths), [*widths])

    results = []
    for ops in (decoder_reference, decoder_kernels):
        torch.manual_seed(1)
        hidden, weight = torch.randn(rows, 200, device=device), torch.randn(200, device=device)
        y, of_down = fused(200)
        both, of_gate = fused(1500, 1500)
        qkv, of_qkv = fused(heads * size, kv_heads * size, kv_heads * size)
        rotation = torch.randn(2, capacity, size, device=device).unbind()
        position, slot = torch.tensor([3, 9, 0, 70, 5, 2], device=device), torch.tensor([70], device=device)
        keys, values = torch.randn(2, rows, kv_heads, capacity, size, device=device).unbind()
        mask = torch.rand(rows, capacity, device=device) < 0.7
        mask[:, 70] = True
        first = ops.norm(hidden, weight, 1e-5)
        second = ops.add_and_norm(hidden, y, of_down, active, weight, 1e-5)
        gate = ops.gate(both, of_gate, active)
        queries = ops.rotate_and_store(qkv, of_qkv, active, rotation, position, slot, keys, values, heads)
        attended = ops.attend(queries, keys, values, mask, slot)
        results.append([first, hidden, second, gate, queries, keys, values, attended])
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
