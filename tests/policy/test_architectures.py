"""Architectures: the table of docs/compatibility.md."""

import re

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.loading import check_cache
from rlhf_marl.policy.model_checks import check_reading
from rlhf_marl.policy.prefix_cache import sees_all
from tests.conftest import TINY, tiny_llama, tiny_mistral, tiny_tokenizer
from tests.policy.test_adapters import tiny_deepseek, tiny_gpt2
from tests.tables import table

RESULTS = dict(table("Architectures"))
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {name: value for name, value in TINY.items() if name != "num_key_value_heads"} | {"num_hidden_layers": 2}


def mamba():
    return MambaForCausalLM(MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS))


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**TINY, num_hidden_layers=2, num_local_experts=4)).eval()


def gpt_neo():
    """Every other layer sees four tokens."""
    config = {"vocab_size": 259, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4, **ENDS}
    return GPTNeoForCausalLM(GPTNeoConfig(**config, attention_types=[[["global", "local"], 1]])).eval()


def mpt():
    """A bias for distance, which is counted in places of the cache."""
    return MptForCausalLM(MptConfig(vocab_size=259, d_model=32, n_layers=2, n_heads=4, max_seq_len=128, **ENDS)).eval()


def bart():
    config = {"vocab_size": 259, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, **ENDS}
    return BartForCausalLM(BartConfig(**config, encoder_layers=2, decoder_ffn_dim=48, is_decoder=True)).eval()


def bert():
    return BertLMHeadModel(BertConfig(**BERT, is_decoder=False)).eval()


def bert_as_decoder():
    return BertLMHeadModel(BertConfig(**BERT, is_decoder=True)).eval()


def gpt():
    config = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**config)).eval()


TRIED = {
    "attention in all layers, with or without a sliding window": [tiny_llama, tiny_mistral, bert_as_decoder],
    "a mixture of experts, such as Mixtral": [mixtral],
    "a mixture of experts with other layers of the experts' names, such as DeepSeek-V3": [tiny_deepseek],
    "GPT-2's `Conv1D": [tiny_gpt2],
    "distances or windows that count padding, such as MPT's and GPT-Neo's": [mpt, gpt_neo],
    "positions that count padding, such as those of BART's decoder": [bart],
    "layers that see later tokens, such as BERT's with `is_decoder: false": [bert],
    "layers without keys and values, such as Mamba's": [mamba],
    "no cache, as in the first GPT": [gpt],
}


def adapted(model):
    check_cache(model, "c: model.name: 'x'")
    check_reading(model, tiny_tokenizer(), "c: model.name: 'x'")
    return StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")


def test_the_page_lists_what_is_tried():
    assert RESULTS.keys() == TRIED.keys()


@pytest.mark.parametrize(("situation", "create"), [(name, create) for name, of in TRIED.items() for create in of])
@pytest.mark.filterwarnings("ignore:.*is_decoder")
def test_a_model_works_or_is_refused_in_one_line(situation, create):
    result, _, reason = RESULTS[situation].partition(": ")
    torch.manual_seed(0)
    model = create()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)  # so that positions matter
    if result == "refused":
        with pytest.raises(UsageError, match=re.escape(reason)) as caught:
            adapted(model)
        assert "\n" not in str(caught.value)
        return
    adapters = adapted(model)
    assert sees_all(model) == (create not in (tiny_mistral, mpt, gpt_neo))
    prompts = [[5, 6, 7] * 12 + end for end in ([8], [9, 8, 7, 6], [5, 5, 5])] * 2  # worth sharing the beginning
    with adapters.use(slice(None)):
        found = generate(model, prompts, max_new_tokens=3, stop_tokens=[2], n_policies=2)
    for prompt, (tokens, log_probabilities) in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1).tolist()
        assert log_probabilities == pytest.approx(expected, abs=1e-4)
    if create is mixtral:
        assert {name.rpartition(".")[2] for name in adapters._layers} == {"q_proj", "k_proj", "v_proj", "o_proj"}
