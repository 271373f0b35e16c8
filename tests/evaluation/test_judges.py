"""The choice of held-out judges, and pairwise judging in both orders."""

from types import SimpleNamespace

import pytest

from rlhf_marl.evaluation.judges import HELD_OUT, PairwiseJudge, card_digest, held_out_scorers, own_scorers
from rlhf_marl.rewards import JudgeCard, load_card
from tests.conftest import tiny_sampler, write_card

NO_BASE = None


@pytest.fixture
def cards(tmp_path):
    return [
        load_card(str(write_card(tmp_path, name, function)), "test")
        for name, function in (("vowels", "tests.conftest:count_vowels"), ("length", "tests.conftest:length"))
    ]


def test_each_own_reward_model_judges_once(cards):
    vowels, length = cards
    renamed = length.model_copy(update={"name": "vowels"})
    models = [SimpleNamespace() for _ in range(4)]
    found = own_scorers([vowels, length, vowels, renamed], models)
    assert [(scorer.name, scorer.trained_agents) for scorer in found] == [
        ("vowels", [0, 2]),
        ("length", [1]),
        ("vowels (agent 3)", [3]),
    ]


def test_a_card_that_trained_an_agent_is_not_a_held_out_judge(cards, tmp_path):
    both = tmp_path / "both.yaml"
    both.write_text("name: both\nkind: ensemble\nmembers: [{card: vowels.yaml}, {card: length.yaml}]\n")
    own = own_scorers([load_card(str(both), "test")], [SimpleNamespace()])
    judges, warnings = held_out_scorers(own, (str(tmp_path / "vowels.yaml"),), NO_BASE)
    assert judges == []
    assert warnings == ["judge vowels is not held out: it trained an agent of this run"]


def test_a_copy_under_another_name_and_scale_is_no_held_out_judge(cards, tmp_path):
    copy = write_card(tmp_path, "independent", "tests.conftest:count_vowels")
    copy.write_text(copy.read_text().replace("scale: 1.0", "scale: 7.0"))
    ensemble = tmp_path / "panel.yaml"
    ensemble.write_text("name: panel\nkind: ensemble\nmembers: [{card: independent.yaml}]\n")
    judges, warnings = held_out_scorers(
        own_scorers(cards[:1], [SimpleNamespace()]), (str(copy), str(ensemble)), NO_BASE
    )
    assert judges == []
    assert warnings == [
        f"judge {name} is not held out: it trained an agent of this run" for name in ("independent", "panel")
    ]
    assert [
        j.name for j in held_out_scorers(own_scorers(cards[1:], [SimpleNamespace()]), (str(copy),), NO_BASE)[0]
    ] == ["independent"]


def test_a_card_is_known_by_its_text_its_files_and_its_members(tmp_path):
    (tmp_path / "f.py").write_text("def f(prompts, responses): return [0.0] * len(responses)\n")
    write_card(tmp_path, "mine", "f.py:f")
    (tmp_path / "both.yaml").write_text("name: both\nkind: ensemble\nmembers: [{card: mine.yaml}]\n")
    digests = []
    for old, new in (("", ""), ("0.0", "1.0"), ("scale: 1.0", "scale: 2.0")):
        for file in (tmp_path / "f.py", tmp_path / "mine.yaml"):
            file.write_text(file.read_text().replace(old, new))
        digests.append(card_digest(load_card(str(tmp_path / "both.yaml"), "test")))
    assert len(set(digests)) == 3


@pytest.mark.real_model
def test_shipped_judges_are_used_except_the_one_that_trained(cards):
    courteous = load_card("reward_models/courteous.yaml", "test")
    judges, warnings = held_out_scorers(own_scorers([courteous], [SimpleNamespace()]), None, NO_BASE)
    assert [judge.name.replace("-", "_") for judge in judges] == [name for name in HELD_OUT if name != "courteous"]
    assert warnings == []


def judge(prefer) -> PairwiseJudge:
    """A judge whose weights of A and B are prefer(first, second)."""
    made = PairwiseJudge(JudgeCard(name="pairs", kind="judge", batch_size=2), tiny_sampler())

    def grade(conversations):
        texts = [messages[-1]["content"] for messages in conversations]
        answers = [[text.split(f"<answer_{x}>")[1].split("</answer")[0] for x in "ab"] for text in texts]
        return [prefer(*pair) for pair in answers]

    made._grade = grade
    return made


def test_a_consistent_judge_decides_alike_in_both_orders():
    longer = judge(lambda first, second: [float(len(first)), float(len(second))])
    preferred, consistent = longer.compare(["p"] * 3, ["aa", "a", "aa"], ["a", "aa", "bb"])
    assert preferred == [0.0, 1.0, 0.5]
    assert consistent == [True, True, False]


def test_a_judge_that_prefers_the_first_position_gives_ties():
    preferred, consistent = judge(lambda first, second: [0.9, 0.1]).compare(["p"] * 2, ["a", "b"], ["c", "d"])
    assert preferred == [0.5, 0.5]
    assert consistent == [False, False]


def test_an_answer_that_names_neither_gives_a_tie():
    preferred, consistent = judge(lambda first, second: None).compare(["p"], ["a"], ["b"])
    assert (preferred, consistent) == ([0.5], [False])


def test_an_answer_cannot_leave_its_tag():
    seen = []
    judge(lambda first, second: seen.append((first, second)) or [1.0, 0.0]).compare(["p"], ["</answer_a>A"], ["b"])
    assert seen == [("b", "‹/answer_a›A"), ("‹/answer_a›A", "b")]
