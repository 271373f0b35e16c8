import pytest
import torch

from rlhf_marl.config.schema import CriticConfig
from rlhf_marl.dialogue.features import CriticFeatures

EMBEDDINGS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def features(lengths=(4,), p=5, width=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return CriticFeatures(EMBEDDINGS, part_lengths=lengths, token_features=p, width=width, generator=generator)


def test_equals_the_full_matrix_on_padded_unit_norm_embeddings():
    """x^(0) = H x with H = H_position (I ⊗ P): built here as one matrix from the same draws."""
    generator = torch.Generator().manual_seed(1)
    token_map = torch.randn(6, 5, generator=generator) / 5**0.5
    position_map = torch.randn((4 + 3) * 5, 7, generator=generator) * 2**0.5
    h = torch.block_diag(*[token_map] * 7) @ position_map  # (7 * 6, 7), transposed H
    zero = torch.zeros(6)
    x = torch.cat([EMBEDDINGS[3], EMBEDDINGS[9], zero, zero, EMBEDDINGS[2], zero, zero])
    expected = (x / x.norm()) @ h
    torch.testing.assert_close(features((4, 3))([[3, 9]], [[2]])[0], expected)


def test_entries_have_the_variance_of_h_on_unit_inputs():
    """H ~ N(0, 2) and ||x|| = 1 give entries of variance 2. With the default 16 features a token, a single H is off by
    a tenth or so, the same for all agents; the mean over many is not."""
    default = CriticConfig().token_features
    variances = torch.stack(
        [features(p=default, width=256, seed=seed)([[1, 2, 3, 4]]).square().mean() for seed in range(200)]
    )
    assert variances.mean().item() == pytest.approx(2, rel=0.03)
    assert 0.1 < variances.std().item() / 2 < 0.25


def test_order_and_place_of_tokens_matter_and_length_is_cut():
    f = features()
    assert not torch.allclose(f([[1, 2]]), f([[2, 1]]))
    assert torch.equal(f([[1, 2, 3, 4, 5]]), f([[1, 2, 3, 4]]))


def test_rows_are_independent():
    f = features()
    together = f([[1, 2], [3]])
    torch.testing.assert_close(together[1], f([[3]])[0])


def test_the_norm_is_that_of_all_parts_together():
    """Twice every embedding, the same features."""
    generator = torch.Generator().manual_seed(1)
    options = {"part_lengths": (4, 3), "token_features": 5, "width": 7, "generator": generator}
    scaled = CriticFeatures(2 * EMBEDDINGS, **options)
    torch.testing.assert_close(scaled([[3, 9]], [[2]]), features((4, 3))([[3, 9]], [[2]]))


def test_a_token_counts_by_its_place_within_its_own_part():
    """A longer state does not move the response."""
    f = features((2, 2))
    norm = EMBEDDINGS[[5, 7]].norm()
    apart = f([[5]], [[7]])[0] * norm
    longer = f([[5, 1]], [[7]])[0] * EMBEDDINGS[[5, 1, 7]].norm()
    alone = f([[1, 1]], [[7]])[0] * EMBEDDINGS[[1, 1, 7]].norm() - f([[1, 1]], [[]])[0] * EMBEDDINGS[[1, 1]].norm()
    torch.testing.assert_close(apart - f([[5]], [[]])[0] * EMBEDDINGS[5].norm(), alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(longer - f([[5, 1]], [[]])[0] * EMBEDDINGS[[5, 1]].norm(), alone, atol=1e-5, rtol=1e-4)


def test_half_precision_embeddings_and_a_seed():
    half = CriticFeatures(
        EMBEDDINGS.bfloat16(),
        part_lengths=(4,),
        token_features=5,
        width=7,
        generator=torch.Generator().manual_seed(1),
    )
    assert half([[1, 2]]).dtype == torch.float32
    torch.testing.assert_close(half([[1, 2]]), features()([[1, 2]]), atol=0.05, rtol=0.05)
    assert torch.equal(features()([[1, 2]]), features()([[1, 2]]))
    assert not torch.allclose(features()([[1, 2]]), features(seed=2)([[1, 2]]))
