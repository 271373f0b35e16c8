import pytest
import yaml

from rlhf_marl.rewards import build_reward_model, load_card


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
