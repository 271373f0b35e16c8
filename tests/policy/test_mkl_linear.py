"""Packed layers give the same numbers as plain layers, for any number of rows."""

import pytest
import torch
from torch import nn

from rlhf_marl.policy import mkl_linear
from rlhf_marl.policy.mkl_linear import MOST_ROWS, MklLinear, use_mkl_linears
from tests.conftest import tiny_llama


@pytest.mark.parametrize("sizes", [(48, 40), (576, 192)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_plain_layer_for_any_number_of_rows(sizes, bias):
    """One packed layout serves all numbers of rows; an empty batch and many rows take the plain weight."""
    plain = nn.Linear(*sizes, bias=bias).requires_grad_(False)
    packed = MklLinear(plain)
    for rows in [*range(70), 128, 129, MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1]:
        x = torch.randn(rows, 1, sizes[0])
        torch.testing.assert_close(packed(x), plain(x), atol=2e-5, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), plain(x), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, MOST_ROWS + 1])
def test_the_gradient_is_the_plain_layers(rows):
    plain = nn.Linear(4, 3).requires_grad_(False)
    x = torch.randn(rows, 1, 4, requires_grad=True)
    weights = torch.randn(rows, 1, 3)
    (expected,) = torch.autograd.grad((plain(x) * weights).sum(), x)
    (MklLinear(plain)(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_the_packed_copy_is_used(monkeypatch):
    """The packed product is used up to MOST_ROWS, with and without gradients."""
    used = []
    real = mkl_linear._product
    monkeypatch.setattr(mkl_linear, "_product", lambda x, *rest: used.append(len(x)) or real(x, *rest))
    packed = MklLinear(nn.Linear(4, 3).requires_grad_(False))
    for rows in (1, MOST_ROWS, MOST_ROWS + 1):
        packed(torch.randn(rows, 4))
        packed(torch.randn(rows, 4, requires_grad=True))
    assert used == [1, 1, MOST_ROWS, MOST_ROWS]


def test_without_the_operators_layers_stay_plain(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    model = tiny_llama().requires_grad_(False)
    use_mkl_linears(model)
    assert type(model.lm_head) is nn.Linear


def test_a_whole_model_keeps_its_logits():
    model = tiny_llama().requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        use_mkl_linears(model)
        assert isinstance(model.model.layers[0].self_attn.q_proj, MklLinear)
        assert isinstance(model.lm_head, MklLinear)
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)
