"""Packed layers give the plain layer's numbers, in the places where they are used and where they are not."""

import pytest
import torch
from torch import nn

from rlhf_marl.dialogue.packed import MOST_ROWS, PackedLinear, pack_linears
from tests.conftest import tiny_llama


@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_layer(rows, bias):
    plain = nn.Linear(48, 40, bias=bias).requires_grad_(False)
    packed = PackedLinear(plain)
    x = torch.randn(rows, 1, 48)
    expected = plain(x)
    torch.testing.assert_close(packed(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)


def test_gradients_pass_through():
    packed = PackedLinear(nn.Linear(4, 3).requires_grad_(False))
    x = torch.randn(2, 4, requires_grad=True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad, packed.weight.sum(0).expand(2, 4))


def test_a_whole_model_keeps_its_logits():
    model = tiny_llama().requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        pack_linears(model)
        assert isinstance(model.model.layers[0].self_attn.q_proj, PackedLinear)
        assert isinstance(model.lm_head, PackedLinear)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)
