"""A second reward kind: one file with card and scorer, one line in the registry."""

from typing import Literal

import rlhf_marl
from rlhf_marl.rewards import KINDS
from rlhf_marl.rewards.base import CardBase
from rlhf_marl.rewards.listing import cards


class KeywordCard(CardBase):
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


def test_agents_train_with_it_alone_and_in_an_ensemble(monkeypatch, tiny_content, tmp_path):
    monkeypatch.setitem(KINDS, "keyword", KeywordCard)
    (tmp_path / "e.yaml").write_text("name: e\nkind: keyword\nword: e\nscale: 2.0\n")
    (tmp_path / "both.yaml").write_text("name: both\nkind: ensemble\nmembers: [{card: e.yaml}]\n")
    agents = [{"reward_model": str(tmp_path / f"{name}.yaml")} for name in ("e", "both")]
    run = rlhf_marl.train(tiny_content | {"agents": agents}, run_dir=tmp_path / "run")
    for _, turn in run.dialogues.iterrows():
        assert turn["reward_scaled"] == [response["text"].count("e") / 2 for response in turn["responses"]]
    assert {row["card"]: row["scorer"] for row in cards([tmp_path])}[str(tmp_path / "e.yaml")] == "the word e"
    rlhf_marl.export(run.path, agent=0, to=tmp_path / "out")
    assert "how often 'e' is said" in (tmp_path / "out" / "README.md").read_text("utf-8")
