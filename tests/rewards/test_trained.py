import json
import shutil

from rlhf_marl.rewards import TrainedCard, build_reward_model, load_card
from rlhf_marl.rewards.trained import cached_folder
from rlhf_marl.rewards.training import train_reward_model
from tests.rewards.conftest import score, write
from tests.rewards.test_sequence_classifier import saved


def test_a_trained_model_and_its_recipe_can_be_moved(cards, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    saved(cards / "tiny", "deberta")
    rows = [{"prompt": f"q{i}", "chosen": "a" * (i + 1), "rejected": "z"} for i in range(12)]
    (cards / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_card(write(cards / "r.yaml", kind="trained", data="pairs.jsonl", base="tiny", epochs=0.1), "x")
    train_reward_model(recipe, cards / "out", "x")
    before = score(str(cards / "out" / "card.yaml"))
    shutil.move(cards / "out", tmp_path / "moved")
    assert score(str(tmp_path / "moved" / "card.yaml")) == before
    moved = recipe.model_copy(update={"data": str(shutil.copy(cards / "pairs.jsonl", tmp_path / "other.jsonl"))})
    assert cached_folder(moved, "x") == cached_folder(recipe, "x")


def test_another_recipe_or_other_data_give_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "pairs.jsonl"
    data.write_text("one")
    card = TrainedCard(name="my card", kind="trained", data=str(data))
    first = cached_folder(card, "x")
    assert first.parent == tmp_path / "cache" / "reward_models"
    assert first.name.startswith("my_card-")
    assert card.available() == "trains on first use"
    assert cached_folder(card.model_copy(update={"epochs": 1.0}), "x") != first
    data.write_text("other")
    assert cached_folder(card, "x") != first


def test_a_model_in_the_cache_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pairs.jsonl").write_text("never read as pairs")
    card = TrainedCard(name="kept", kind="trained", data=str(tmp_path / "pairs.jsonl"))
    folder = cached_folder(card, "x")
    folder.mkdir(parents=True)
    write(folder / "card.yaml", kind="callable", function="tests.conftest:length")
    assert card.available() == "trained"
    assert card.finished().kind == "callable"
    assert build_reward_model(card).score(["p"], ["four"]) == [4.0]


def test_a_changed_base_or_a_line_in_another_file_gives_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_MARL_CACHE", str(tmp_path / "cache"))
    for folder in ("base", "pairs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    (tmp_path / "pairs" / "a.jsonl").write_text("one\ntwo\n")
    (tmp_path / "pairs" / "b.jsonl").write_text("three\n")
    card = TrainedCard(name="x", kind="trained", data=str(tmp_path / "pairs"), base=str(tmp_path / "base"))
    seen = [cached_folder(card, "x")]
    (tmp_path / "base" / "model.safetensors").write_text("weighty")
    seen.append(cached_folder(card, "x"))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    seen.append(cached_folder(card, "x"))
    (tmp_path / "pairs" / "a.jsonl").write_text("one\n")
    (tmp_path / "pairs" / "b.jsonl").write_text("two\nthree\n")
    seen.append(cached_folder(card, "x"))
    assert len(set(seen)) == 4
    assert cached_folder(card, "x") == seen[-1]
