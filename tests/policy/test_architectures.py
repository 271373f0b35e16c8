"""Architectures: the table of docs/compatibility.md."""

import re

import pytest
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.loading import check_cache
from tests.conftest import TINY, tiny_llama, tiny_mistral
from tests.tables import table

RESULTS = dict(table("Architectures"))
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=128, **ENDS)).eval()


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**TINY, num_hidden_layers=2, num_local_experts=4)).eval()


TRIED = {
    "attention in all layers, with or without a sliding window": [tiny_llama, tiny_mistral],
    "a mixture of experts, such as Mixtral": [mixtral],
    "layers without keys and values, such as Mamba's": [mamba],
    "layers that are no `nn.Linear`, such as GPT-2's `Conv1D": [gpt2],
}


def adapted(model):
    check_cache(model, "c: model.name: 'x'")
    return StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")


def test_the_page_lists_what_is_tried():
    assert RESULTS.keys() == TRIED.keys()


@pytest.mark.parametrize(("situation", "create"), [(name, create) for name, of in TRIED.items() for create in of])
def test_a_model_works_or_is_refused_in_one_line(situation, create):
    result, _, reason = RESULTS[situation].partition(": ")
    model = create()
    if result == "refused":
        with pytest.raises(UsageError, match=re.escape(reason)) as caught:
            adapted(model)
        assert "\n" not in str(caught.value)
        return
    adapters = adapted(model)
    with adapters.use(slice(None)):
        assert len(generate(model, [[5, 6, 7]] * 4, max_new_tokens=3, stop_tokens=[2], n_policies=2)) == 4
    if create is mixtral:
        assert {name.rpartition(".")[2] for name in adapters._layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
