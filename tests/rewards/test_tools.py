"""What `rlhf-marl reward` does, without the command line."""

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards.python_callable import CallableCard
from rlhf_marl.rewards.tools import agreement, calibrated, opened, read_texts
from tests.conftest import write_card
from tests.rewards.pairs import pair


def named(name):
    return CallableCard(name=name, kind="callable", function="m:f")


def texts(*responses):
    return [{"prompt": "p", "response": response} for response in responses]


class Length:
    def score(self, prompts, responses):
        return [float(len(text)) for text in responses]


def test_a_constant_model_has_no_rank_correlation():
    class Constant:
        def score(self, prompts, responses):
            return [1.0] * len(responses)

    found = agreement([(named("a"), Length()), (named("b"), Constant())], [pair("p", "xx", "x"), pair("p", "x", "xxx")])
    assert found.accuracy["b"].accuracy == 0.5
    assert found.correlation[("a", "b")][0] != found.correlation[("a", "b")][0]  # nan


def test_scale_and_offset_by_hand():
    """Lengths 1, 3, 5: mean 3, sample deviation 2."""
    assert calibrated(named("a"), Length(), texts("x", "xxx", "xxxxx"), "f") == (2.0, -3.0)


@pytest.mark.parametrize("responses", [["x"], ["x", "y"]])
def test_scores_that_do_not_differ_give_no_scale(responses):
    with pytest.raises(UsageError, match="needs at least two responses with different scores"):
        calibrated(named("a"), Length(), texts(*responses), "f")


def test_agreement_by_hand():
    """The longer response wins one of three pairs; a card agrees with itself in every order."""
    pairs = [pair("p", "xx", "x"), pair("p", "x", "xx"), pair("p", "x", "xxxx")]
    found = agreement([(named("a"), Length()), (named("b"), Length())], pairs)
    assert found.accuracy["a"].accuracy == found.accuracy["(longer wins)"].accuracy == pytest.approx(1 / 3)
    assert list(found.accuracy) == ["a", "b", "(longer wins)", "(coin)"]
    assert found.correlation[("a", "b")] == pytest.approx((1.0, 1.0, 1.0))


def test_equal_names_are_refused():
    with pytest.raises(UsageError, match="two cards are named 'a'"):
        agreement([(named("a"), Length()), (named("a"), Length())], [pair("p", "x", "y")])


def test_an_opened_card_scores(tmp_path):
    card, model = opened(str(write_card(tmp_path, "a", "tests.conftest:length")))
    assert (card.name, model.score(["p"], ["four"])) == ("a", [4.0])


def test_texts_are_rows_with_prompt_and_response(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "p", "response": "r", "id": 7}\n')
    assert read_texts(path) == [{"prompt": "p", "response": "r", "id": 7}]
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(UsageError, match="line 1 has no column 'response'; it has prompt"):
        read_texts(path)
    path.write_text("")
    with pytest.raises(UsageError, match="holds no responses"):
        read_texts(path)
