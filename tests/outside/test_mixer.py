"""A second mixer: messages between neighbours, round by round."""

from functools import partial

import pytest
import torch

import rlhf_marl
from rlhf_marl.training.build import build


class NeighbourMixer:
    """Each agent weights its neighbours' messages by its own row of A."""

    def __init__(self, matrix, rounds):
        self.matrix, self.rounds, self.sent = matrix, rounds, []
        self.own_share = 1 / len(matrix)

    def mix(self, values):
        for _ in range(self.rounds):
            inboxes = [{j: values[j] for j in range(len(row)) if row[j]} for row in self.matrix]
            self.sent += [(i, j) for i, inbox in enumerate(inboxes) for j in inbox if i != j]
            rows = zip(self.matrix.to(values), inboxes, strict=True)
            values = torch.stack([sum(row[j] * message for j, message in inbox.items()) for row, inbox in rows])
        return values


def test_neighbour_messages_train_as_the_matrix_power_does(tiny_content, tmp_path):
    content = tiny_content | {"agents": tiny_content["agents"] * 2, "topology": {"graph": "ring", "gossip_rounds": 3}}
    mixers = []
    outside = partial(build, mixer=lambda matrix, rounds: mixers.append(NeighbourMixer(matrix, rounds)) or mixers[0])
    ours = rlhf_marl.train(content, run_dir=tmp_path / "a").metrics
    theirs = rlhf_marl.train(content, run_dir=tmp_path / "b", builder=outside).metrics
    for key in ("td_error", "actor_signal", "disagreement_after", "gradient_norm"):
        assert theirs[key].tolist() == pytest.approx(ours[key].tolist(), rel=1e-3, abs=1e-5)
    assert set(mixers[0].sent) == {(i, (i + step) % 4) for i in range(4) for step in (1, 3)}  # neighbours alone
