import math

import pytest
import torch

from rlhf_marl.rewards import build_reward_model, load_card
from rlhf_marl.rewards.prototype import Prototype, PrototypeCard


def test_prototype_by_hand():
    """Two-dimensional embeddings: good = (1, 0), bad = (0, 1): score = x - y of the unit vector."""
    table = {"good": (1.0, 0.0), "bad": (0.0, 1.0), "mixed": (0.6, 0.8)}
    card = PrototypeCard(name="p", kind="prototype", good=["good"], bad=["bad"])
    model = Prototype(card, lambda texts, batch_size: torch.tensor([table[t] for t in texts]))
    assert model.score(["", ""], ["good", "mixed"]) == pytest.approx([1.0, -0.2])
    only_good = PrototypeCard(name="p", kind="prototype", good=["good", "mixed"])
    model = Prototype(only_good, lambda texts, batch_size: torch.tensor([table[t] for t in texts]))
    assert model.score([""], ["good"]) == pytest.approx([0.8])  # (1 + 0.6) / 2


@pytest.mark.real_model
def test_padding_and_order_never_change_a_prototype_score():
    card = load_card("reward_models/harmless.yaml", "test")
    model = build_reward_model(card)
    texts = [
        "Short.",
        "A much longer sentence, with many more words in it than the others have, on purpose.",
        "Mid one.",
    ]
    together = model.score([""] * 3, texts)
    alone = [model.score([""], [text])[0] for text in texts]
    reverse = model.score([""] * 3, texts[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(reverse, abs=1e-5)
    assert all(math.isfinite(s) for s in model.score([""], [""]))
