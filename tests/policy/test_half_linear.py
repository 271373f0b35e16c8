"""Packed layers give the same numbers as plain layers with the same weights of half precision."""

import pytest
import torch
from torch import nn

from rlhf_marl.policy import half_linear
from rlhf_marl.policy.half_linear import MOST_ROWS, HalfLinear, use_half_precision
from tests.conftest import tiny_llama


def layer(*sizes, bias=True):
    plain = nn.Linear(*sizes, bias=bias).requires_grad_(False)
    plain.weight.copy_(plain.weight.half())
    return plain


@pytest.mark.parametrize("sizes", [(48, 40), (576, 192), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_layer_for_any_number_of_rows(sizes, bias):
    plain = layer(*sizes, bias=bias)
    packed = HalfLinear(plain)
    for rows in [*range(MOST_ROWS + 2), 128]:
        x = torch.randn(rows, 1, sizes[0])
        torch.testing.assert_close(packed(x), plain(x), atol=2e-5, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), plain(x), atol=2e-5, rtol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    packed, x = HalfLinear(layer(576, 192)), torch.randn(MOST_ROWS, 576)
    together = packed(x)
    for row in (0, 5, MOST_ROWS - 1):
        torch.testing.assert_close(packed(x[row : row + 1]), together[row : row + 1], atol=2e-6, rtol=0)


@pytest.mark.parametrize("rows", [2, MOST_ROWS + 1])
def test_the_gradient_is_the_plain_layers(rows):
    plain = layer(4, 3)
    x = torch.randn(rows, 1, 4, requires_grad=True)
    weights = torch.randn(rows, 1, 3)
    (expected,) = torch.autograd.grad((plain(x) * weights).sum(), x)
    (HalfLinear(plain)(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_the_packed_copy_is_used(monkeypatch):
    """The packed product is used up to MOST_ROWS, with and without gradients."""
    used = []
    real = half_linear._product
    monkeypatch.setattr(half_linear, "_product", lambda x, *rest: used.append(len(x)) or real(x, *rest))
    packed = HalfLinear(layer(4, 3))
    for rows in (1, MOST_ROWS, MOST_ROWS + 1):
        packed(torch.randn(rows, 4))
        packed(torch.randn(rows, 4, requires_grad=True))
    assert used == [1, 1, MOST_ROWS, MOST_ROWS]


def test_where_nothing_packs_the_weights_are_rounded_all_the_same(monkeypatch):
    monkeypatch.setattr(half_linear, "can_pack", lambda: False)
    model = tiny_llama().requires_grad_(False)
    exact = model.lm_head.weight.clone()
    use_half_precision(model)
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, exact.half().float())
    assert not torch.equal(model.lm_head.weight, exact)


def test_weights_beyond_half_precision_stay_exact():
    model = tiny_llama().requires_grad_(False)
    model.lm_head.weight[3, 4] = 70_000.0
    exact = model.lm_head.weight.clone()
    use_half_precision(model)
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, exact)


def test_a_whole_model_has_the_logits_of_its_rounded_weights():
    """For rows that are packed, and for rows that are not."""
    rounded, model = tiny_llama().requires_grad_(False), tiny_llama().requires_grad_(False)
    for module in rounded.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(module.weight.half())
    use_half_precision(model)
    assert isinstance(model.model.layers[0].self_attn.q_proj, HalfLinear)
    assert isinstance(model.lm_head, HalfLinear)
    for ids in (torch.tensor([[5, 6, 7]]), torch.arange(3, 103).unsqueeze(0)):
        with torch.inference_mode():
            torch.testing.assert_close(model(ids).logits, rounded(ids).logits, atol=1e-5, rtol=1e-4)
