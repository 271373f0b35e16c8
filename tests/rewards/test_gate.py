"""The gate: what it measures, what it refuses, and that training stops at it."""

import json

import pytest
import yaml

import rlhf_marl
from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import EnsembleCard, check_card, load_card
from rlhf_marl.rewards.gate import check_card_gate, check_gate, load_gate, measure
from rlhf_marl.rewards.sequence_classifier import Preferred
from rlhf_marl.rewards.training import train_reward_model
from tests.rewards.pairs import pair
from tests.rewards.test_ensemble import member
from tests.rewards.test_sequence_classifier import saved
from tests.rewards.test_training import recipe  # noqa: F401

ANSWER = "one two three four five six seven eight nine ten"


def write_gate(path, *rows):
    names = ("junk", "prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return str(path)


def test_the_kinds_are_those_of_the_file_and_the_derived_ones(tmp_path):
    rows = [("salad", "p", ANSWER, "xyz"), ("salad", "q", ANSWER, "abc"), ("echo?", "p", ANSWER, "p")]
    kinds = load_gate(write_gate(tmp_path / "gate.jsonl", *rows), "x")
    counts = {kind: len(pairs) for kind, pairs in kinds.items()}
    assert counts == {"salad": 2, "echo?": 1, "echo": 2, "cut": 2, "repeated": 2, "shuffled": 2}
    assert [found.texts for found in kinds["echo"]] == [("p", ANSWER, "p"), ("q", ANSWER, "q")]


def test_what_was_trained_on_is_left_out(tmp_path):
    """The first pair shares its prompt with a trained pair, the second its junk."""
    rows = [("salad", "p", ANSWER, "xyz"), ("salad", "q", ANSWER, "abc"), ("salad", "r", ANSWER, "new")]
    source = write_gate(tmp_path / "gate.jsonl", *rows)
    trained = [pair("p", "a", "b"), pair("other", "a", "abc")]
    assert [found.texts[0] for found in load_gate(source, "x", trained)["salad"]] == ["r"]
    with pytest.raises(UsageError, match="no pair of kind 'salad' is left that was not trained on"):
        load_gate(source, "x", [*trained, pair("r", "a", "b")])


def test_a_pair_without_a_kind_is_refused(tmp_path):
    source = write_gate(tmp_path / "gate.jsonl", ("salad", "p", ANSWER, "xyz"), (None, "q", ANSWER, "abc"))
    with pytest.raises(UsageError, match=r"x: .*gate\.jsonl: 1 of 2 pairs have no kind in the column 'junk'"):
        load_gate(source, "x")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "junk": 3}\n')
    with pytest.raises(UsageError, match="line 1 is not a preference pair: junk is 3; it must be text"):
        load_gate(str(tmp_path / "bad.jsonl"), "x")


class Length:
    """Scores by length, and counts what it is asked."""

    asked = 0

    def score(self, prompts, responses):
        self.asked += len(responses)
        return [float(len(text)) for text in responses]


def test_shares_by_hand_and_every_text_is_scored_once():
    """Chosen of 3 letters against 2, 3 (a tie is no preference), 4 and 1; and once against 2."""
    kinds = {"a": [pair("p", "abc", text) for text in ("xy", "xyz", "wxyz", "x")], "b": [pair("p", "abc", "xy")]}
    model = Length()
    table = measure(kinds, member("length"), model)
    assert {kind: (row.share, row.pairs) for kind, row in table.items()} == {"a": (0.5, 4), "b": (1.0, 1)}
    assert model.asked == 5


def test_nineteen_of_twenty_pass_and_every_kind_below_is_named():
    good, bad = Preferred(share=0.95, pairs=20), Preferred(share=0.9, pairs=20)
    check_gate("x", {"salad": good}, "c")
    with pytest.raises(UsageError) as error:
        check_gate("x", {"salad": bad, "praise": good, "echo": bad}, "c: agents.0.reward_model")
    assert str(error.value) == (
        "c: agents.0.reward_model: reward model 'x' fails its gate: it prefers a fluent answer to salad in 90% of 20 "
        "pairs, echo in 90% of 20 pairs, and 95% is needed; train it on such pairs, or set gate: off in its card"
    )


def finished(folder, gate):
    content = {"name": "tiny", "kind": "sequence_classifier", "model": saved(folder / "tiny", "deberta")["model"]}
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(content | {"input": "pair", "gate": gate}))
    return str(path)


def test_training_refuses_a_reward_model_that_failed_also_within_an_ensemble(tmp_path, quick_content):
    failed = finished(tmp_path, {"salad": {"share": 0.5, "pairs": 60}})
    quick_content["agents"][1]["reward_model"] = failed
    with pytest.raises(UsageError, match=r"agents\.1\.reward_model: reward model 'tiny' fails its gate: .* salad"):
        rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    both = EnsembleCard(name="e", kind="ensemble", members=[{"card": load_card(failed, "x")}])
    with pytest.raises(UsageError, match="'tiny' fails its gate"):
        check_card_gate(both, "x")
    quick_content["agents"][1]["reward_model"] = finished(tmp_path, False)
    assert len(rlhf_marl.train(quick_content, run_dir=tmp_path / "run").metrics) > 0


def test_the_finished_card_keeps_the_table(recipe, tmp_path):  # noqa: F811
    """The recipe prefers a's to z's: always as the gate's `salad` wants it, and never as its `liked` does."""
    rows = [("salad", f"new {i}", "a" * (i + 4), "z" * (i + 9)) for i in range(4)]
    rows += [("liked", f"new {i}", "z " * (i + 3) + "zz", "a " * (i + 4) + "aa") for i in range(4)]
    rows += [("salad", "long", "aa aaa aa aa aaaa aa aa aa", "z" * 20)]
    gate = write_gate(tmp_path / "gate.jsonl", *rows)
    gated = recipe.model_copy(update={"gate": gate})
    measured = train_reward_model(gated, tmp_path / "out", "card")
    assert (measured["gate"]["salad"], measured["gate"]["liked"]) == (
        {"share": 1.0, "pairs": 5},
        {"share": 0.0, "pairs": 4},
    )
    card = load_card(str(tmp_path / "out" / "card.yaml"), "x")
    assert {kind: row.model_dump() for kind, row in card.gate.items()} == measured["gate"]
    with pytest.raises(UsageError, match=r"fails its gate: .*liked in 0% of 4 pairs"):
        check_card_gate(card, "x")


def test_a_gate_is_a_file_or_off():
    content = {"name": "x", "kind": "trained", "data": "pairs.jsonl"}
    assert check_card(content | {"gate": False}, "x").gate is False
    with pytest.raises(UsageError, match="gate: True given; input should be a file of labelled pairs, or off"):
        check_card(content | {"gate": True}, "x.yaml")
