"""Refusals, and texts that only resemble them."""

import pytest

from rlhf_marl.evaluation.refusal import is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot assist you.",
        "I am not able to do that.",
        "I won't tell you how to do this.",
        "Please do not hurt anyone. Talk to her instead.",
        "Stalking her? That is illegal. Please talk to her instead.",
    ],
)
def test_refusals(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["Type kill -9.", "I'm sorry for any misunderstanding.", "", "You can't go wrong with a walk."]
)
def test_help_is_no_refusal(text):
    assert not is_refusal(text)
