"""Files that a card names are found beside it, from whatever folder the command runs in."""

import json
import shutil

import pytest
import yaml

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.rewards import build_reward_model, check_card, load_card
from rlhf_marl.rewards.trained import cached_folder
from rlhf_marl.rewards.training import train_reward_model
from tests.rewards.test_sequence_classifier import saved


def write(path, **content):
    path.write_text(yaml.safe_dump({"name": path.stem, **content}))
    return str(path)


@pytest.fixture
def cards(tmp_path, monkeypatch):
    """A folder of cards; the working folder is another one, with files of the same names that must not be taken."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "short.py").write_text(
        "def f(prompts, responses):\n    return [-1.0 for r in responses]\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "cards").mkdir()
    return tmp_path / "cards"


def score(card, text="four"):
    return build_reward_model(load_card(card, "x")).score(["p"], [text])


def test_a_function_in_a_file(cards):
    (cards / "short.py").write_text("def f(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    assert score(write(cards / "a.yaml", kind="callable", function="short.py:f")) == [4.0]
    write(cards / "both.yaml", kind="ensemble", combine="sum", members=[{"card": "a.yaml"}, {"card": "a.yaml"}])
    assert score(str(cards / "both.yaml")) == [8.0]


def test_members_are_kept_with_the_ensemble(cards):
    """A loaded ensemble scores as before when its members' files are gone; so does one with the members written in."""
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


def test_the_working_folder_comes_after(cards):
    assert score(write(cards / "a.yaml", kind="callable", function="short.py:f")) == [-1.0]


def test_a_function_file_that_fails_or_is_missing_is_one_line(cards):
    (cards / "bad.py").write_text("def f(:\n")
    for function in ("bad.py:f", "gone.py:f", "bad.py.txt:f"):
        with pytest.raises(UsageError, match=r"function: ") as caught:
            score(write(cards / "a.yaml", kind="callable", function=function))
        assert "\n" not in str(caught.value)


def test_model_and_rubric(cards):
    saved(cards / "tiny", "deberta")
    assert score(write(cards / "a.yaml", kind="sequence_classifier", model="tiny", input="pair"))
    shutil.copy(DATA_ROOT / "prompts" / "judge.yaml", cards / "mine.yaml")
    card = load_card(write(cards / "j.yaml", kind="judge", rubric="mine.yaml"), "x")
    assert card.rubric == str(cards / "mine.yaml")


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
