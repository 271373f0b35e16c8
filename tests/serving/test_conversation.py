"""A dialogue with scores: what is asked, remembered and scored."""

import pytest

from rlhf_marl.errors import RunStopped
from rlhf_marl.evaluation.judges import Scorer
from rlhf_marl.rewards import load_card
from rlhf_marl.serving.answers import Answer, Answerer, Sampling
from rlhf_marl.serving.conversation import Conversation
from tests.conftest import write_card


class Fake:
    """An answerer that says who answered which turn, and records the messages."""

    context_length = 100

    def __init__(self):
        self.asked = []

    def limit(self, who, sampling):
        return 10

    def prompt_tokens(self, who, messages):
        return sum(len(message["content"]) for message in messages)

    def answer(self, who, messages, sampling, *, adapted):
        self.asked.append((who, [message["content"] for message in messages], adapted))
        return Answer(f"<{who}>" if adapted else "untrained", [], [1, 2], True, None)


def letters(prompts, responses):
    return [float(len(prompt) + len(response)) for prompt, response in zip(prompts, responses, strict=True)]


def fail(prompts, responses):
    raise ValueError("broken")


@pytest.fixture
def scorer(tmp_path):
    def build(function):
        card = load_card(str(write_card(tmp_path, "letters", "tests.serving.test_conversation:letters")), "test")
        return Scorer("letters", card, type("Model", (), {"score": staticmethod(function)}), [0])

    return build


def test_answers_become_part_of_the_dialogue_without_tags(scorer):
    fake = Fake()
    conversation = Conversation(fake, [scorer(letters)], Sampling(0))
    (said,) = conversation.ask("one").said
    assert (said.who, said.adapted, said.text, said.scores) == ("team", True, "<team>", {"letters": 9.0})
    conversation.who = "agent-1"
    conversation.ask("two")
    conversation.begin_again()
    conversation.ask("three")
    assert [messages for _, messages, _ in fake.asked] == [["one"], ["one", "‹team›", "two"], ["three"]]
    assert [reply.question for reply in conversation.replies] == ["one", "two", "three"]


def test_side_by_side_the_dialogue_goes_on_with_the_trained_answer(scorer):
    fake = Fake()
    conversation = Conversation(fake, [scorer(letters)], Sampling(0))
    conversation.beside_base = True
    said = conversation.ask("hi").said
    assert [(one.adapted, one.text, one.scores["letters"]) for one in said] == [
        (True, "<team>", 8.0),
        (False, "untrained", 11.0),
    ]
    conversation.ask("and?")
    assert fake.asked[-1][1] == ["hi", "‹team›", "and?"]
    assert [adapted for _, _, adapted in fake.asked] == [True, False, True, False]


def test_a_dialogue_beyond_the_context_is_noted():
    conversation = Conversation(Fake(), [], Sampling(0))
    assert [conversation.ask("x" * 44).truncated for _ in range(2)] == [False, True]


def test_a_broken_reward_model_costs_only_its_scores(scorer):
    conversation = Conversation(Fake(), [scorer(fail)], Sampling(0))
    (said,) = conversation.ask("hi").said
    assert (said.text, said.scores) == ("<team>", {})
    assert "ValueError: broken" in said.problem or "ValueError: 'broken'" in said.problem


def test_after_an_error_the_dialogue_is_as_before():
    fake = Fake()
    conversation = Conversation(fake, [], Sampling(0))
    conversation.ask("one")
    answer, fake.answer = fake.answer, lambda *_, **__: (_ for _ in ()).throw(RunStopped("down"))
    with pytest.raises(RunStopped):
        conversation.ask("two")
    fake.answer = answer
    conversation.ask("three")
    assert fake.asked[-1][1] == ["one", "‹team›", "three"]


def test_with_a_run(loaded_run):
    conversation = Conversation(Answerer(loaded_run), loaded_run.scorers, Sampling(0))
    conversation.who, conversation.beside_base = "agent-0", True
    trained, base = conversation.ask("hi").said
    assert set(trained.scores) == {"vowels", "length"}
    assert trained.scores["length"] == len(trained.text)
    assert trained.text != base.text
    assert conversation.record()[0]["said"][1]["text"] == base.text
