import torch

from rlhf_marl.policy.padding import left_pad, positions, right_pad


def test_prompts_are_padded_on_the_left():
    ids, mask = left_pad([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_responses_are_padded_on_the_right():
    ids, mask = right_pad([[5], [6, 7]], 9, torch.device("cpu"))
    assert ids.tolist() == [[5, 9], [6, 7]]
    assert mask.tolist() == [[1, 0], [1, 1]]


def test_positions_count_real_tokens_alone():
    assert positions(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
