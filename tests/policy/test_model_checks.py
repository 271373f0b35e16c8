"""Short trials of a model before a run; test_architectures.py tries them on real architectures."""

import pytest
import torch
from torch import nn

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.model_checks import check_reading, check_training
from rlhf_marl.policy.prefix_cache import sees_all
from tests.conftest import tiny_llama, tiny_tokenizer


class AddsInPlace(nn.Module):
    def forward(self, x):
        return x.add_(1)


def stacked(model):
    return StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")


def test_a_model_that_reads_alike_is_accepted_and_keeps_its_shared_beginnings():
    model = tiny_llama()
    check_reading(model, tiny_tokenizer(), "c")
    assert sees_all(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_16_bits_is_no_difference(dtype):
    check_reading(tiny_llama().to(dtype), tiny_tokenizer(), "c")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_later_tokens_is_refused(dtype):
    model = tiny_llama().to(dtype)
    model.model.layers[1].register_forward_hook(lambda _, inputs, output: output.flip(1))
    with pytest.raises(UsageError, match=r"^c: a LlamaForCausalLM answers otherwise when its prompt is padded or"):
        check_reading(model, tiny_tokenizer(), "c")


def test_logits_that_are_no_numbers_are_refused():
    model = tiny_llama()
    model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(UsageError, match="answers otherwise"):
        check_reading(model, tiny_tokenizer(), "c")


def test_what_the_models_code_raises_is_one_line():
    model = tiny_llama()

    def fail(*_):
        raise KeyError("no such\nthing")

    model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(
        UsageError, match=r"c: a LlamaForCausalLM cannot be read in batches with .*: .*no such"
    ) as caught:
        check_reading(model, tiny_tokenizer(), "c")
    assert "\n" not in str(caught.value)


def test_a_trial_update_leaves_no_gradient():
    model = tiny_llama()
    adapters = stacked(model)
    before = adapters.parameters.detach().clone()
    check_training(model, adapters, "c")
    assert torch.equal(adapters.parameters, before)
    assert not adapters.parameters.grad.any()


def test_a_model_that_changes_a_layers_output_in_place_is_refused():
    model = tiny_llama()
    model.model.layers[0].mlp = nn.Sequential(nn.Linear(32, 32), AddsInPlace())
    with pytest.raises(UsageError, match="c: a LlamaForCausalLM cannot be trained with adapters: ") as caught:
        check_training(model, stacked(model), "c")
    assert "\n" not in str(caught.value)
