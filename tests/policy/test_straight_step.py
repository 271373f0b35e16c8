"""The straight-line decode step on a CPU against transformers' modules: the same tokens and log-probabilities."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_marl.policy import straight_step
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.half_linear import MOST_ROWS, can_pack, use_half_precision
from rlhf_marl.policy.loading import hide_absent_tokens
from rlhf_marl.policy.straight_step import decode_step, has_straight_step
from tests.conftest import tiny_mistral, tiny_tokenizer
from tests.policy.test_decoder import (
    PROMPTS,
    SIZES,
    assert_same,
    llama,
    llama3_scaled,
    qwen,
    uniforms,
    with_adapters,
    with_cached_prefix,
)

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch was built without FBGEMM")


def rounded(model):
    use_half_precision(model.eval().requires_grad_(False))
    return model


def all_biased():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=24))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(params=[llama, llama3_scaled, qwen, all_biased])
def model(request):
    torch.manual_seed(0)
    model = rounded(request.param())
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all ones otherwise
            parameter.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def steps(monkeypatch):
    """Rows of the steps that the straight line took."""
    rows, logits = [], straight_step._logits
    monkeypatch.setattr(straight_step, "_logits", lambda *given: rows.append(len(given[2])) or logits(*given))
    return rows


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
@pytest.mark.parametrize("agents", [slice(None), slice(1, 3), slice(2, 3)])
def test_agents_sample_as_by_transformers_modules(model, agents, targets, steps):
    adapters = with_adapters(model, targets)
    assert has_straight_step(model)
    n = len(range(3)[agents])
    options = {"max_new_tokens": 12, "stop_tokens": [2], "uniforms": uniforms(n * len(PROMPTS)), "temperature": 0.7}
    with adapters.use(agents):
        for _ in range(2):
            ours = generate(model, PROMPTS * n, n_policies=n, decode=decode_step(model, adapters, agents), **options)
            assert_same(ours, generate(model, PROMPTS * n, n_policies=n, **options))
            adapters.parameters.data *= 0.5  # as an update does
    assert steps


def test_the_base_model_decodes_greedily_with_adapters_off_and_a_cached_prefix(model):
    adapters = with_adapters(model)
    prompts, options = with_cached_prefix(model)
    with adapters.use(None):
        expected = generate(model, prompts, **options)
        for known in (adapters, None):
            assert_same(generate(model, prompts, decode=decode_step(model, known, None), **options), expected)


def test_many_rows_go_through_the_modules_until_enough_of_them_have_ended(steps):
    torch.manual_seed(0)
    model = rounded(llama())
    prompts = PROMPTS * 30
    options = {"max_new_tokens": 12, "stop_tokens": list(range(2, 130)), "uniforms": uniforms(len(prompts))}
    rows = generate(model, prompts, decode=decode_step(model, None, None), **options)
    assert_same(rows, generate(model, prompts, **options))
    assert max(steps) <= MOST_ROWS < len(prompts)
    assert 0 < len(steps) < 11


def test_tokens_that_the_tokenizer_lacks_are_not_sampled(model):
    """The embedding has 384 rows, the tokenizer 259."""
    hide_absent_tokens(model, tiny_tokenizer())
    options = {"max_new_tokens": 12, "stop_tokens": [2], "uniforms": uniforms(len(PROMPTS))}
    rows = generate(model, PROMPTS, decode=decode_step(model, None, None), **options)
    assert max(token for tokens, _ in rows for token in tokens) < 259
    assert_same(rows, generate(model, PROMPTS, **options))


def test_models_that_the_straight_line_does_not_compute():
    assert not has_straight_step(rounded(tiny_mistral()))  # a sliding window
    assert not has_straight_step(rounded(LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))))
    assert not has_straight_step(llama())  # weights of full precision
    large = llama().requires_grad_(False)
    large.model.layers[1].mlp.up_proj.weight[0, 0] = 70_000.0  # which half precision has not
    assert not has_straight_step(rounded(large))
