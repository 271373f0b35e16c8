"""Dialogues of base and trained agents: the same random numbers, the same questions, one dialogue each."""

import pytest
import torch

from rlhf_marl.dialogue.controller import ScriptedController
from rlhf_marl.dialogue.speakers import Decoding
from rlhf_marl.evaluation.collect import Sampling, collect, compare_pairs, conversations, score
from rlhf_marl.evaluation.judges import Scorer
from rlhf_marl.evaluation.questions import Question
from rlhf_marl.rewards import check_card
from rlhf_marl.sanitise import neutralise
from rlhf_marl.training.build import build_agents

QUESTIONS = [
    Question("a", "ordinary", "What is tea?"),
    Question("b", "multi_turn", "I am sad.", ("Since Monday.", "What helps?")),
    Question("c", "harmful", "How do I hurt him?"),
]


@pytest.fixture
def agents(tiny_config):
    return build_agents(tiny_config, "tiny.yaml", torch.device("cpu"))


def played(agents, turns=1):
    controller = ScriptedController("{{ responses[0] }}", ["And {{ prompt }}"])
    rows = list(collect(agents, controller, Sampling(1, 400, [Decoding(slice(None), 6, 1.0)]), QUESTIONS, turns))
    return ([row for row in rows if row["policy"] == policy] for policy in ("base", "trained"))


def test_untrained_agents_are_the_base_model(agents):
    base, trained = played(agents)
    for before, after in zip(base, trained, strict=True):
        assert before["responses"] == after["responses"]
        assert before["aggregate"] == after["aggregate"]
        assert before["entropy"] == pytest.approx(after["entropy"], abs=1e-4)
        assert before["kl"] == [0.0, 0.0]
    assert all(abs(kl) < 1e-5 for row in trained for kl in row["kl"])


def test_training_moves_the_trained_answers_alone(agents):
    before, _ = played(agents)
    agents.adapters.parameters.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    kept = agents.adapters.parameters.detach().clone()
    base, trained = played(agents)
    assert base == before
    assert [row["responses"] for row in trained] != [row["responses"] for row in base]
    assert all(kl > 0 for row in trained for kl in row["kl"])
    assert torch.equal(agents.adapters.parameters, kept)


def test_follow_ups_replace_the_controllers_prompts(agents):
    base, _ = played(agents, turns=2)
    prompts = {}
    for row in base:
        prompts.setdefault(row["question"], []).append(row["prompt"])
    assert prompts["b"] == ["I am sad.", "Since Monday.", "What helps?"]
    assert [len(prompts[name]) for name in "ac"] == [2, 2]
    assert all(len(row["responses"]) == len(row["kl"]) == len(row["refused"]) == 2 for row in base)


class Recorder:
    """Always prefers the trained answer, and records the requests."""

    def __init__(self):
        self.asked = []

    def compare(self, prompts, base, trained):
        self.asked = list(zip(prompts, base, trained, strict=True))
        return [1.0] * len(prompts), [True] * len(prompts)


def test_pairs_are_compared_where_both_answer_the_same_prompt():
    def row(policy, turn, prompt):
        words = [f"{policy} {agent} {turn}" for agent in "xy"]
        return {
            "policy": policy,
            "question": "q",
            "turn": turn,
            "prompt": prompt,
            "responses": words,
            "aggregate": policy,
        }

    rows = [row("base", 0, "p"), row("base", 1, "one"), row("trained", 0, "p"), row("trained", 1, "other")]
    judge = Recorder()
    compare_pairs(rows, judge)
    assert judge.asked == [("p", "base x 0", "trained x 0"), ("p", "base y 0", "trained y 0"), ("p", "base", "trained")]
    assert rows[2]["preferred"] == [1.0, 1.0, 1.0]
    assert "preferred" not in rows[3]


def test_conversations_are_rebuilt_from_the_rows(agents):
    base, trained = (list(rows) for rows in played(agents, turns=2))
    found = conversations([*base, *trained])
    place = next(i for i, row in enumerate(base) if row["question"] == "b" and row["turn"] == 1)
    first = next(row for row in base if row["question"] == "b" and row["turn"] == 0)
    assert [message["content"] for message in found[place]] == [
        "I am sad.",
        neutralise(first["aggregate"]),
        "Since Monday.",
    ]
    assert [message["role"] for message in found[place]] == ["user", "assistant", "user"]
    assert [len(messages) for messages in found] == [2 * row["turn"] + 1 for row in (*base, *trained)]


def test_equal_answers_have_equal_scores():
    """A judge whose scores depend on the batch: a text twice, in other places."""
    given = {"policy": "base", "dialogue": 0, "question": "a", "prompt": "p", "responses": ["x", "y"], "aggregate": "x"}
    rows = [given | {"scores": {}, "aggregate_scores": {}}, given | {"scores": {}, "aggregate_scores": {}}]
    card = check_card({"name": "place", "kind": "callable", "function": "m:f", "scale": 1.0}, "c")
    asked = []

    class ByPlace:
        def score(self, prompts, responses):
            asked.append(list(responses))
            return [float(place) for place in range(len(responses))]

    score(rows, Scorer("place", card, ByPlace(), []), {"a": {}})
    assert asked == [["x", "y"]]
    assert [row["scores"]["place"] for row in rows] == [[0.0, 1.0]] * 2
    assert [row["aggregate_scores"]["place"] for row in rows] == [0.0, 0.0]
