"""The check of scores, and the methods of every card."""

import pytest
import torch

from rlhf_marl.errors import RunStopped
from rlhf_marl.rewards import build_reward_model, score_all
from rlhf_marl.rewards.base import absolute, public_name
from rlhf_marl.rewards.prototype import PrototypeCard
from rlhf_marl.rewards.python_callable import CallableCard

CARD = CallableCard(name="test", kind="callable", function="tests.conftest:length", scale=2.0, offset=-6.0)


class Scripted:
    """A reward model that returns what it is given."""

    def __init__(self, result):
        self.result = result

    def score(self, prompts, responses):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_scaling_of_appendix_d2_by_hand():
    """(raw + b_offset) / a_scaling with the paper's values for Gemma: (-4 + 10) / 6 = 1."""
    card = CallableCard(name="gemma", kind="callable", function="m:f", scale=6.0, offset=10.0)
    assert card.scaled(-4.0) == 1.0
    raw, scaled = score_all(CARD, build_reward_model(CARD), ["", ""], ["1234", "12345678"], agent=0)
    assert (raw, scaled) == ([4.0, 8.0], [-1.0, 1.0])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, float("nan")], r"returned nan, not a finite number, for the text 'second'"),
        ([float("inf"), 1.0], r"returned inf, not a finite number, for the text 'first'"),
        ([1.0, "high"], r"returned 'high', not a finite number, for the text 'second'"),
        ([1.0, None], r"returned None, no"),
        ([1.0, 10**400], r"returned 1000000.*, not a finite number, for the text 'second'"),
        ([1.0, 10**5000], r"returned int, not a finite number, for the text 'second'"),
        ([1.0, 1e39], r"returned 1e\+39, too large for float32, for the text 'second'"),
        ([1.0], r"returned 1 scores for 2 responses; first text: 'first'"),
        (3.0, r"returned float for 2 responses"),
        (ValueError("no\nway"), r"raised ValueError: 'no\\nway'; first text: 'first'"),
    ],
)
def test_a_bad_score_names_agent_card_and_text(result, message):
    with pytest.raises(RunStopped, match=r"agent 4: reward model 'test' " + message) as caught:
        score_all(CARD, Scripted(result), ["p", "p"], ["first", "second"], agent=4)
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_not_a_bad_score():
    class Interrupted:
        def score(self, prompts, responses):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_all(CARD, Interrupted(), ["p"], ["r"], agent=0)


def test_tensors_are_scores_too():
    raw, _ = score_all(CARD, Scripted(torch.tensor([1.0, 2.0])), ["p", "p"], ["a", "b"], agent=0)
    assert raw == [1.0, 2.0]


def test_long_hostile_text_is_shown_bounded_and_escaped():
    with pytest.raises(RunStopped) as caught:
        score_all(CARD, Scripted([float("nan")]), ["p"], ["\x1b[31m\n" + "x" * 500], agent=0)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_score_that_its_scale_makes_too_large_is_refused():
    with pytest.raises(RunStopped, match="returned 1e\\+30, too large for float32"):
        score_all(CARD.model_copy(update={"scale": 1e-9}), Scripted([1e30]), ["p"], ["r"], agent=0)


@pytest.mark.parametrize(
    ("raw", "scale", "offset", "scaled"), [(3.0, 1.0, 0.0, 3.0), (3.0, 2.0, 1.0, 2.0), (0.0, 0.5, -1.0, -2.0)]
)
def test_scaled_by_hand(raw, scale, offset, scaled):
    assert CARD.model_copy(update={"scale": scale, "offset": offset}).scaled(raw) == scaled


def test_files_beside_a_card_become_absolute_and_others_stay(tmp_path):
    (tmp_path / "encoder").mkdir()
    card = PrototypeCard(name="p", kind="prototype", good=["g"], model="encoder")
    assert card.beside(tmp_path).model == str(tmp_path / "encoder")
    assert card.beside(tmp_path / "elsewhere") == card
    assert absolute("encoder", tmp_path) == str(tmp_path / "encoder")
    assert absolute("gone", tmp_path) == "gone"


@pytest.mark.parametrize(
    ("reference", "public"),
    [
        ("owner/model", "owner/model"),
        ("package:encoder/model", "package:encoder/model"),
        ("/home/me/secret/model", "model (local)"),
        ("./model", "model (local)"),
        ("~/model", "model (local)"),
    ],
)
def test_a_public_name_has_no_folder_of_this_machine(reference, public):
    assert public_name(reference) == public


def test_a_folder_that_is_there_is_local_without_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    assert public_name("mine/model") == "model (local)"


def test_a_failing_score_outside_a_run_names_no_agent():
    with pytest.raises(RunStopped, match=r"^reward model 'test' returned 1 scores for 2 responses"):
        score_all(CARD, Scripted([1.0]), ["p", "p"], ["first", "second"])


def test_a_plain_card_finishes_and_resolves_to_itself():
    assert CARD.finished() is CARD
    assert CARD.resolved(()) is CARD
    assert CARD.member_cards() == []
