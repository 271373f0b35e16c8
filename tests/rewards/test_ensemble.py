import json
from types import SimpleNamespace

import pytest
import yaml

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards import EnsembleCard, build_reward_model, check_card, load_card
from rlhf_marl.rewards.ensemble import Ensemble
from rlhf_marl.rewards.python_callable import CallableCard
from tests.conftest import write_card
from tests.rewards.conftest import write


@pytest.mark.parametrize(("combine", "expected"), [("sum", 6.5), ("mean", 6.5 / 1.5), ("minimum", 1.0)])
def test_ensemble_by_hand(tmp_path, combine, expected):
    """'abcdef' has 2 vowels, scaled (2/4 + 0.5) / 1 = 1, and 6 letters, scaled (6 + 5) / 1 = 11; weights 1 and 0.5."""
    for name, function, offset in (("vowels", "count_vowels", 0.5), ("length", "length", 5.0)):
        content = yaml.safe_load(write_card(tmp_path, name, f"tests.conftest:{function}").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content | {"offset": offset}))
    members = [
        {"card": str(tmp_path / "vowels.yaml"), "weight": 1.0},
        {"card": str(tmp_path / "length.yaml"), "weight": 0.5},
    ]
    both = EnsembleCard(name="both", kind="ensemble", combine=combine, members=members)
    assert build_reward_model(both).score(["p"], ["abcdef"]) == pytest.approx([expected])


def test_each_member_reads_as_much_of_the_dialogue_as_it_asks_for():
    asked = {}

    def member(name, **options):
        card = CallableCard(name=name, kind="callable", function="math:prod", **options)
        score = lambda prompts, responses: asked.update({name: prompts}) or [0.0]  # noqa: E731
        return card, SimpleNamespace(score=score)

    whole = {"convention": "trl", "conversational": True, "context": "dialogue"}
    members = [member("last"), member("whole", **whole)]
    card = EnsembleCard(name="both", kind="ensemble", members=[{"card": card} for card, _ in members])
    assert card.reads_dialogue
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "q"}]
    Ensemble(card, members).score([talk], ["y"])
    assert asked == {"last": ["q"], "whole": [talk]}


def test_members_are_kept_with_the_ensemble(cards):
    """A loaded ensemble scores the same after its members' files are deleted; so does one with inline members."""
    (cards / "short.py").write_text("def f(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    member = {"name": "a", "kind": "callable", "function": "short.py:f", "offset": 1.0}
    write(cards / "a.yaml", **member)

    def both(card):
        members = [{"card": card, "weight": 2.0}]
        return load_card(write(cards / "both.yaml", kind="ensemble", combine="sum", members=members), "x")

    loaded = both("a.yaml")
    (cards / "a.yaml").unlink()
    kept = check_card(json.loads(loaded.model_dump_json()), "x")
    assert kept == loaded == both(member)
    assert build_reward_model(kept).score(["p"], ["four"]) == [10.0]


def test_an_ensemble_of_itself_is_refused(cards):
    write(cards / "a.yaml", kind="ensemble", members=[{"card": "b.yaml"}])
    with pytest.raises(UsageError, match=r"the ensemble is a member of itself"):
        load_card(write(cards / "b.yaml", kind="ensemble", members=[{"card": "a.yaml"}]), "x")


class Fixed:
    def __init__(self, *scores):
        self.scores = list(scores)

    def score(self, prompts, responses):
        return self.scores


def member(name, **changes):
    return CallableCard(name=name, kind="callable", function="m:f", **changes)


@pytest.mark.parametrize(
    ("combine", "expected"), [("sum", [7.0, 1.0]), ("mean", [1.75, 0.25]), ("minimum", [1.0, -2.0])]
)
def test_rows_are_combined_by_hand(combine, expected):
    """Members score (1, -2) and, scaled by 2, (2, 1); weights 1 and 3."""
    cards = [member("a"), member("b", scale=2.0)]
    members = [{"card": card, "weight": weight} for card, weight in zip(cards, (1.0, 3.0), strict=True)]
    card = EnsembleCard(name="e", kind="ensemble", combine=combine, members=members)
    model = Ensemble(card, list(zip(cards, (Fixed(1, -2), Fixed(4, 2)), strict=True)))
    assert model.score(["p", "p"], ["x", "y"]) == expected


def test_disagreement_is_penalised_by_hand():
    """Scaled scores 2, 6 and 4, 4 with weights 1 and 3: means 5 and 4, deviations √3 and 0."""
    cards = [member("a"), member("b", scale=2.0)]
    members = [{"card": card, "weight": weight} for card, weight in zip(cards, (1.0, 3.0), strict=True)]
    card = EnsembleCard(name="e", kind="ensemble", disagreement_penalty=2.0, members=members)
    scorers = list(zip(cards, (Fixed(2, 4), Fixed(12, 8)), strict=True))
    assert Ensemble(card, scorers).score(["p", "p"], ["x", "y"]) == pytest.approx([1.535898, 4.0])
    assert card.in_words() == "mean of a, b, minus 2 standard deviations"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combine": "minimum"}, "disagreement_penalty: goes with combine: mean, not minimum"),
        ({"members": [{"card": "a.yaml"}, {"card": "b.yaml", "weight": -0.5}]}, "a member has a negative weight"),
        ({"disagreement_penalty": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_penalty_that_cannot_be_meant_is_refused(changes, message):
    content = {"name": "e", "kind": "ensemble", "disagreement_penalty": 1.0, "members": [{"card": "a.yaml"}]} | changes
    with pytest.raises(ValueError, match=message):
        EnsembleCard(**content)


def test_weights_without_a_mean_are_refused():
    members = [{"card": "a.yaml", "weight": 1.0}, {"card": "b.yaml", "weight": -1.0}]
    with pytest.raises(ValueError, match="the weights sum to 0, which has no mean; use combine: sum"):
        EnsembleCard(name="e", kind="ensemble", members=members)
    assert EnsembleCard(name="e", kind="ensemble", combine="sum", members=members).in_words() == "sum of a, b"


def test_a_bad_member_is_named():
    card = EnsembleCard(name="e", kind="ensemble", members=[{"card": member("a")}])
    with pytest.raises(RunStopped, match="reward model 'a' returned nan"):
        Ensemble(card, [(member("a"), Fixed(float("nan")))]).score(["p"], ["x"])
