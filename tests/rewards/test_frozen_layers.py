"""Training of the top layers alone: the layers below keep their weights, and answer from memory what they would say."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards.frozen_layers import keep_layers, top_layers
from tests.conftest import TINY, tiny_llama

TEXTS = [[5, 6, 7], [9, 8, 7, 6, 5], [11], [5, 6, 7]]
IDS = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 7, 6, 5], [11, 0, 0, 0, 0]])
MASK = (IDS > 0).long()


def bert():
    torch.manual_seed(0)
    sizes = {key: TINY[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=3, num_labels=1)).eval()


def llama():
    config = tiny_llama(layers=3).config
    config.num_labels = 1
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


def qwen():
    sizes = {key: TINY[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, num_key_value_heads=2, num_hidden_layers=3, num_labels=1, pad_token_id=0)
    return Qwen2ForSequenceClassification(config).eval()


def deberta(**options):
    sizes = {key: TINY[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    torch.manual_seed(0)
    config = DebertaV2Config(**sizes, num_hidden_layers=3, num_labels=1, pooler_hidden_size=32, **options)
    return DebertaV2ForSequenceClassification(config).eval()


@pytest.mark.parametrize("build", [bert, llama, deberta])
@pytest.mark.parametrize("trained", [1, 2, 3])
def test_the_gradient_is_that_of_the_whole_model(build, trained):
    """Of the top layers and the head; the others get none."""
    whole = build()
    whole(input_ids=IDS, attention_mask=MASK).logits.sum().backward()
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    model = build()
    names = {id(p): name for name, p in model.named_parameters()}
    with top_layers(model, trained, TEXTS, 0, "x"):
        model(input_ids=IDS, attention_mask=MASK).logits.sum().backward()
    got = {names[id(p)]: p.grad for p in model.parameters() if p.grad is not None}
    layers = {int(part) for name in got for part in name.split(".") if part.isdigit()}
    assert layers == set(range(3 - trained, 3))
    assert ("bert.pooler.dense.weight" in got) == (build is bert)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_afterwards_the_model_reads_other_texts_too():
    model = bert()
    other = torch.tensor([[3, 4]])
    before = model(input_ids=other, attention_mask=torch.ones_like(other)).logits
    with top_layers(model, 1, TEXTS, 0, "x"):
        pass
    assert torch.equal(model(input_ids=other, attention_mask=torch.ones_like(other)).logits, before)


def test_more_layers_than_there_are():
    with pytest.raises(UsageError, match="x: trained_layers: 4 of 3 layers"), top_layers(bert(), 4, TEXTS, 0, "x"):
        pass


@pytest.mark.parametrize(("build", "layers"), [(bert, "bert.encoder.layer"), (qwen, "model.layers")])
def test_fewer_layers_are_saved_and_loaded(build, layers, tmp_path):
    """They score like the whole model whose last layer does nothing."""
    whole, model = build(), build()
    if build is bert:
        whole.bert.encoder.layer[2] = torch.nn.Identity()
        whole.bert.encoder.layer[2].forward = lambda states, *args, **kwargs: states
    else:
        for part in (whole.model.layers[2].self_attn.o_proj, whole.model.layers[2].mlp.down_proj):
            part.weight.data.zero_()
    keep_layers(model, 2, "x")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert len(loaded.get_submodule(layers)) == 2
    with torch.no_grad():
        expected = whole(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(loaded(input_ids=IDS, attention_mask=MASK).logits, expected)
    with pytest.raises(UsageError, match="x: layers: 4 of 2 layers"):
        keep_layers(model, 4, "x")


def test_a_model_that_does_more_between_its_layers_is_refused():
    """A convolution after the first layer."""
    model = deberta(conv_kernel_size=3, initializer_range=0.5)
    before = model(input_ids=IDS, attention_mask=MASK).logits
    with (
        pytest.raises(UsageError, match="trained_layers: DebertaV2ForSequenceClassification cannot be trained in part"),
        top_layers(model, 1, TEXTS, 0, "x"),
    ):
        pass
    assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, before)
