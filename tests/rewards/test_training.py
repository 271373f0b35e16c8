"""Training reward models with a tiny encoder; the shipped recipes with the real one are measured in docs/."""

import json
import math
import threading
import time
from collections import Counter

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.rewards import TrainedCard, build_reward_model, load_card
from rlhf_marl.rewards.preferences import load_pairs
from rlhf_marl.rewards.sequence_classifier import SequenceClassifierCard
from rlhf_marl.rewards.training import accuracy, openings, reliability, split_pairs, train_reward_model
from tests.rewards.pairs import pair
from tests.rewards.test_sequence_classifier import saved


@pytest.fixture
def recipe(tmp_path) -> TrainedCard:
    """Prefers answers with many a's over answers with many z's."""
    rows = [{"prompt": f"question {i}", "chosen": "a" * (i % 7 + 4), "rejected": "z" * (i % 5 + 4)} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = saved(tmp_path / "base", "deberta")["model"]
    return TrainedCard(
        name="tiny",
        kind="trained",
        data=str(tmp_path / "pairs.jsonl"),
        base=base,
        epochs=6.0,
        learning_rate=3e-3,
        licence="MIT",
        gate=False,
    )


def test_trains_fits_the_scale_and_writes_a_finished_card(recipe, tmp_path, capsys):
    measured = train_reward_model(recipe, tmp_path / "out", "card")
    assert measured["held_out"]["pairs"] == 8
    assert measured["held_out"]["accuracy"] == 1.0
    assert measured["trained_on"] == 32
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == measured
    card = load_card(str(tmp_path / "out" / "card.yaml"), "x")
    assert isinstance(card, SequenceClassifierCard)
    assert (card.name, card.licence, card.scale) == ("tiny", "MIT", measured["scale"])
    raw = build_reward_model(card).score(["new", "new"], ["aaaaaa", "zzzzzz"])
    assert card.scaled(raw[0]) > 0 > card.scaled(raw[1])
    assert abs(card.scaled(raw[0]) + card.scaled(raw[1])) < 1
    printed = capsys.readouterr()
    assert "train_loss" not in printed.out + printed.err


def test_a_trained_card_trains_once_and_again_for_other_data(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    quick = recipe.model_copy(update={"epochs": 0.2})
    first = quick.finished()
    weights = tmp_path / "cache" / "reward_models"
    before = {path: path.stat().st_mtime_ns for path in weights.rglob("*.safetensors")}
    assert quick.finished() == first
    assert {path: path.stat().st_mtime_ns for path in weights.rglob("*.safetensors")} == before
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "new", "chosen": "aa", "rejected": "zz"}\n')
    assert quick.finished().model != first.model


def test_same_seed_same_model(recipe, tmp_path):
    quick = recipe.model_copy(update={"epochs": 0.5})
    measured = [train_reward_model(quick, tmp_path / str(i), "card") for i in range(2)]
    assert measured[0] == measured[1]
    other = train_reward_model(quick.model_copy(update={"seed": 1}), tmp_path / "other", "card")
    assert other != measured[0]


def test_a_second_process_waits_for_the_first_and_takes_its_model(recipe, tmp_path, caplog):
    holds = threading.Event()

    def first() -> None:
        with FileLock(tmp_path / ".out.lock"):
            holds.set()
            time.sleep(0.2)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "training.json").write_text('{"trained_on": 7}')
            (tmp_path / "out" / "card.yaml").touch()

    threading.Thread(target=first).start()
    holds.wait()
    assert train_reward_model(recipe, tmp_path / "out", "card") == {"trained_on": 7}
    assert "reward model tiny: another process is training it; waiting" in caplog.text


def test_what_a_killed_training_left_is_removed_and_a_full_disk_leaves_nothing(recipe, tmp_path, monkeypatch):
    left = tmp_path / ".out.tmp"
    left.mkdir(parents=True)
    (left / "garbage").touch()

    def full(temporary, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_marl.files.atomic.move", full)
    quick = recipe.model_copy(update={"epochs": 0.1})
    with pytest.raises(
        RunStopped, match="out cannot be written: No space left on device; free some space and start again"
    ):
        train_reward_model(quick, tmp_path / "out", "card")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name and path.suffix != ".lock"]
    monkeypatch.undo()
    left.mkdir(parents=True)
    (left / "garbage").touch()
    train_reward_model(quick, tmp_path / "out", "card")
    assert not (tmp_path / "out" / "garbage").exists()


def test_unusable_input_is_told_before_training(recipe, tmp_path):
    with pytest.raises(UsageError, match=r"data: 40 pairs are too few to train on with a share of 0\.01 held out"):
        train_reward_model(recipe.model_copy(update={"held_out": 0.01}), tmp_path / "out", "card")


def test_split_keeps_prompts_together_and_depends_on_the_seed():
    pairs = [pair(f"p{i // 2}", "a", "b") for i in range(40)]
    train, held_out = split_pairs(pairs, 0.25, seed=0)
    assert len(held_out) == 10
    assert not {p.texts[0] for p in train} & {p.texts[0] for p in held_out}
    assert sorted(map(str, train + held_out)) == sorted(map(str, pairs))
    assert split_pairs(pairs, 0.25, seed=1)[1] != held_out


def test_openings_by_hand():
    pairs = [pair("p", "one two  three four", "one"), pair("p", "so it is", "so it was"), pair("p", "a b c", "a x")]
    assert openings(pairs, 2) == [pair("p", "one two", "one"), pair("p", "a b", "a x")]
    assert openings(pairs, None) == []


def test_openings_are_trained_on_but_not_counted_in_the_accuracy(recipe, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    long = [row | {"chosen": "q w e " + row["chosen"], "rejected": "q w r " + row["rejected"]} for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    quick = recipe.model_copy(update={"epochs": 0.3})
    whole = train_reward_model(quick, tmp_path / "whole", "card")
    cut = train_reward_model(quick.model_copy(update={"opening_words": 3}), tmp_path / "cut", "card")
    assert (cut["trained_on"], cut["held_out"]["pairs"]) == (whole["trained_on"], whole["held_out"]["pairs"])
    assert cut["scale"] != whole["scale"]


def test_junk_is_trained_on_once_and_never_from_held_out_prompts(recipe, tmp_path, monkeypatch):
    """Of 40 junk pairs that ask the 40 prompts, the 8 held out are left out; of 32 + 32 answers of nine words, all give
    derived junk. Half of the junk is trained on as openings, in one pass; the pairs, in two passes."""
    rows = [
        {"prompt": f"question {i}", "chosen": " ".join("abcdefgh") + f" {i}", "rejected": "z" * (i % 5 + 4)}
        for i in range(40)
    ]
    for name in ("pairs", "junk"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row | {"junk": name}) + "\n" for row in rows))
    card = recipe.model_copy(
        update={
            "junk": [str(tmp_path / "junk.jsonl")],
            "derived_junk": ["repeated", "shuffled"],
            "junk_margin": 6.0,
            "epochs": 1.6,
        }
    )
    fitted = {}

    def fit(card, rows, epochs, folder, where):
        fitted.update(pairs=[pair for pair, _ in rows], rows=rows, epochs=epochs)
        raise RunStopped("enough")

    monkeypatch.setattr("rlhf_marl.rewards.training._fit", fit)
    with pytest.raises(RunStopped, match="enough"):
        train_reward_model(card, tmp_path / "out", "card")
    assert fitted["epochs"] == 0.8
    kinds = Counter(pair.junk for pair in fitted["pairs"])
    assert kinds == {"pairs": 2 * 32, "junk": 32, "repeated": 32, "shuffled": 32}
    assert {(pair.junk == "pairs", margin) for pair, margin in fitted["rows"]} == {(True, 0.0), (False, 6.0)}
    held_out = {pair.texts[0] for pair in split_pairs(load_pairs(card.data, "x"), 0.2, 0)[1]}
    assert len(held_out) == 8
    assert not held_out & {pair.texts[0] for pair in fitted["pairs"]}
    with pytest.raises(RunStopped, match="enough"):
        train_reward_model(card.model_copy(update={"opening_words": 3}), tmp_path / "out", "card")
    junk = Counter(len(pair.texts[1].split()) for pair in fitted["pairs"] if pair.texts[2][0] == "z")
    assert junk == {9: 2 * 32 + 16, 3: 2 * 32 + 16}


def test_the_top_layer_alone_puts_junk_below_by_its_margin(recipe, tmp_path):
    """One layer of two is kept, or one of two is trained; the layers below stay the base's."""
    rows = [{"prompt": f"question {i}", "chosen": "b" * (i % 5 + 4), "rejected": "q" * (i % 5 + 4)} for i in range(40)]
    (tmp_path / "junk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gaps = {}
    for margin, layers in ((0.0, 2), (8.0, 2), (8.0, 1)):
        update = {"junk": [str(tmp_path / "junk.jsonl")], "learning_rate": 0.02, "trained_layers": 1}
        update |= {"junk_margin": margin, "layers": layers}
        out = tmp_path / f"{margin}-{layers}"
        train_reward_model(recipe.model_copy(update=update), out, "card")
        assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == layers
        base, trained = (load_file(folder / "model.safetensors") for folder in (tmp_path / "base", out))
        learned = {name for name in trained if name in base and not torch.equal(trained[name], base[name])}
        assert {name.split(".")[3] for name in learned if ".layer." in name} == {str(layers - 1)}
        assert not any("embeddings" in name for name in learned)
        chosen, junk = build_reward_model(load_card(str(out / "card.yaml"), "x")).score(["new"] * 2, ["bbbbb", "qqqqq"])
        gaps[margin, layers] = chosen - junk
    assert gaps[8.0, 2] > gaps[0.0, 2] + 4


def test_accuracy_by_hand():
    """3 wins, 1 tie of 5: 0.7. Wilson's interval for 4 of 5 (the tie rounds up): 0.3755 to 0.9638."""
    found = accuracy([1.0, 2.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0])
    assert found.accuracy == 0.7
    assert (found.low, found.high) == pytest.approx((0.3755, 0.9638), abs=1e-4)
    assert found.pairs == 5


def test_reliability_by_hand():
    """Differences ln 3 (confidence 0.75) right and wrong, and ln 19 (0.95) right."""
    rows = reliability([math.log(3), 0.0, math.log(19)], [0.0, math.log(3), 0.0])
    assert [(round(row.confidence, 6), row.accuracy, row.pairs) for row in rows] == [(0.75, 0.5, 2), (0.95, 1.0, 1)]


def test_shipped_recipes_are_cards(tmp_path):
    content = {"name": "x", "kind": "trained", "data": "reward_models/data/harmless.jsonl"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    assert isinstance(load_card(str(tmp_path / "x.yaml"), "x"), TrainedCard)
