"""A second reward kind: one file with card and scorer, one line in the registry."""

from typing import Literal

import pytest

import rlhf_marl
from rlhf_marl.rewards import KINDS, load_card
from rlhf_marl.rewards.base import CardBase
from rlhf_marl.rewards.tools import cards


class KeywordCard(CardBase):
    """Counts a word."""

    kind: Literal["keyword"]
    word: str

    def build(self, base, journal):
        return self

    def score(self, prompts, responses):
        return [float(text.count(self.word)) for text in responses]

    def scores_with(self):
        return f"the word {self.word}"

    def in_words(self):
        return f"how often {self.word!r} is said"


@pytest.fixture
def keyword(monkeypatch, tmp_path):
    monkeypatch.setitem(KINDS, "keyword", KeywordCard)
    (tmp_path / "e.yaml").write_text("name: e\nkind: keyword\nword: e\nscale: 2.0\n")
    (tmp_path / "both.yaml").write_text("name: both\nkind: ensemble\nmembers: [{card: e.yaml}]\n")
    return tmp_path


def test_agents_train_with_it_alone_and_in_an_ensemble(keyword, tiny_content):
    agents = [{"reward_model": str(keyword / f"{name}.yaml")} for name in ("e", "both")]
    run = rlhf_marl.train(tiny_content | {"agents": agents}, run_dir=keyword / "run")
    for _, turn in run.dialogues.iterrows():
        assert turn["reward_scaled"] == [response["text"].count("e") / 2 for response in turn["responses"]]
    assert {row["card"]: row["scorer"] for row in cards([keyword])}[str(keyword / "e.yaml")] == "the word e"
    rlhf_marl.export(run.path, agent=0, to=keyword / "out")
    assert "how often 'e' is said" in (keyword / "out" / "README.md").read_text("utf-8")


def test_without_the_line_its_cards_are_refused(keyword, monkeypatch):
    monkeypatch.delitem(KINDS, "keyword")
    with pytest.raises(rlhf_marl.errors.UsageError, match=r"kind: 'keyword' is not allowed; choose"):
        load_card(str(keyword / "e.yaml"), "test")
