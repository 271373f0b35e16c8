"""Training of the top layers alone: the layers below keep their weights, and answer from memory what they would say."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards.frozen_layers import top_layers
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


@pytest.mark.parametrize("build", [bert, llama])
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
