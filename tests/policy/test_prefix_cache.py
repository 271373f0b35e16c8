"""Prefill in parts gives the same logits, and reads each part once."""

import pytest
import torch
from transformers import DynamicCache

from rlhf_marl.policy import prefix_cache
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.prefix_cache import PrefixCache, extend, prefill, shared_tokens, with_room
from tests.conftest import tiny_llama, tiny_mistral


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def last_logits(model, prompt):
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[5, 6, 7], [5, 6, 8]], 2),
        ([[5, 6, 7], [5, 6]], 1),  # one token of each is left
        ([[5, 6, 7]] * 2, 2),
        ([[5], [5, 6]], 0),
        ([[4, 5], [6, 5]], 0),
        ([[5, 6, 7, 8]], 3),
        ([[5, 6, 7], [5, 9, 7]], 1),  # what is alike further on does not count
    ],
)
def test_shared_tokens_by_hand(model, prompts, expected):
    assert shared_tokens(model, [prompts]) == expected
    assert shared_tokens(model, [[[3] * 9] * 2, prompts]) == expected  # of two policies, the fewest


@pytest.mark.parametrize("worth", [0, 10**9])
@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("cached", [[], [5], [5, 6]])
def test_prefill_gives_every_prompts_own_logits(model, monkeypatch, worth, room, cached):
    monkeypatch.setattr(prefix_cache, "_WORTH_READING", worth)
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 4], [5, 6, 7, 8, 9], [5, 6, 7, 9, 9, 9]]
    cached_prefix = PrefixCache().read(model, cached) if cached else None
    logits, cache, mask = prefill(model, prompts, 1, 0, room=room, cached_prefix=cached_prefix)
    torch.testing.assert_close(
        logits, torch.stack([last_logits(model, prompt) for prompt in prompts]), atol=1e-4, rtol=1e-4
    )
    assert mask.sum(-1).tolist() == [5, 4, 5, 6]
    assert cache.get_seq_length() == mask.shape[1] == 6
    if cached_prefix is not None:
        assert cached_prefix.get_seq_length() == len(cached)  # it stays as it is


@pytest.mark.parametrize("worth", [0, 10**9])
def test_prefill_goes_policy_by_policy(monkeypatch, worth):
    """Also where each policy's prompts begin with a prefix of their own."""
    monkeypatch.setattr(prefix_cache, "_WORTH_READING", worth)
    model = tiny_llama(layers=1)
    adapters = StackedAdapters(model, [1, 2], rank=2, alpha=4.0, targets=["v_proj", "down_proj"], where="c")
    adapters.parameters.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(7))
    prompts = [[5, 6, 7], [5, 8], [9, 9, 9, 9], [9, 8]]
    with adapters.use(slice(None)):
        logits, _, _ = prefill(model, prompts, 2, 0)
    for number in range(4):
        with adapters.use(slice(number // 2, number // 2 + 1)):
            torch.testing.assert_close(logits[number], last_logits(model, prompts[number]), atol=1e-4, rtol=1e-4)


def test_only_a_long_shared_prefix_gets_its_own_pass(model):
    """More than 64 tokens must be saved: 65 in one more prompt, or 13 in each of five more."""

    def passes(prompts):
        shapes = []
        hook = model.base_model.register_forward_pre_hook(
            lambda _, arguments, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
        )
        prefill(model, prompts, 1, 0)
        hook.remove()
        return shapes

    begin = [7] * 65
    assert passes([[*begin, 5], [*begin, 6]]) == [(1, 65), (2, 1)]
    assert passes([[*begin[:64], 5], [*begin[:64], 6]]) == [(2, 65)]
    assert passes([[*begin[:13], 20 + i] for i in range(6)]) == [(1, 13), (6, 1)]
    assert passes([[*begin, 5]] * 3) == [(1, 66)]  # alike: read once anyway


def test_the_cache_keeps_the_newest(model):
    prefixes = PrefixCache(most=2)
    first, second = prefixes.read(model, [5, 6]), prefixes.read(model, [7])
    assert prefixes.read(model, (5, 6)) is first  # and is now the newest
    assert first.get_seq_length() == 2
    third = prefixes.read(model, [8])
    assert prefixes.read(model, [5, 6]) is first
    assert prefixes.read(model, [8]) is third
    assert prefixes.read(model, [7]) is not second  # forgotten


def test_prefixes_are_not_shared_with_sliding_window_attention():
    model = tiny_mistral()
    assert PrefixCache().read(model, [5, 6]) is None
    assert shared_tokens(model, [[[5, 6, 7], [5, 6, 8]]]) == 0


def test_room_repeats_rows_and_leaves_the_original_alone(model):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([[5, 6], [7, 8]]), past_key_values=cache)
    before = [layer.keys.clone() for layer in cache.layers]
    roomy = with_room(cache, 2, 3)
    assert roomy.get_seq_length() == 2
    for layer, keys in zip(roomy.layers, before, strict=True):
        assert torch.equal(layer.keys, keys[[0, 0, 1, 1]])
    with torch.no_grad():
        logits = model(torch.tensor([[9], [4], [9], [4]]), past_key_values=roomy).logits[:, -1]
    expected = torch.stack([last_logits(model, prompt) for prompt in ([5, 6, 9], [5, 6, 4], [7, 8, 9], [7, 8, 4])])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert roomy.get_seq_length() == 3
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    roomy.batch_select_indices(torch.tensor([3, 0]))
    with torch.no_grad():
        logits = model(torch.tensor([[11], [12]]), past_key_values=roomy).logits[:, -1]
    expected = torch.stack([last_logits(model, prompt) for prompt in ([7, 8, 4, 11], [5, 6, 9, 12])])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_a_shared_prefix():
    model = tiny_llama(layers=1)
    adapters = StackedAdapters(model, [1], rank=2, alpha=4.0, targets=["v_proj"], where="c")
    with adapters.use(slice(None)):
        cache = extend(model, [[5, 6]], DynamicCache(config=model.config))
    assert cache.get_seq_length() == 2
    assert cache.layers[0].values.requires_grad
