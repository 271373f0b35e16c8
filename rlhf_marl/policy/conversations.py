"""Conversations in users' data: recognised with their roles, or refused with the reason."""

import re
from collections.abc import Sequence
from typing import Any

from rlhf_marl.files.user_data import check_encodable
from rlhf_marl.policy.chat import Message
from rlhf_marl.sanitise import shortened

_TURN = re.compile(r"\n\n(Human|Assistant):")
_CUE = re.compile(r"\n\nAssistant:\s*$")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_ROLES = ("system", "user", "assistant")
_TOOLS = ("tool_calls", "function_call", "tool_call_id")


def read_text(value: Any, what: str) -> str:
    """Text without outer white space. Raises ValueError if it is none, is empty, or contains a lone surrogate."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {'null' if value is None else shortened(value)}; it must be text")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    check_encodable(value, what)
    return value.strip()


def is_plain(value: Any) -> bool:
    """Whether it is text, and no transcript."""
    return isinstance(value, str) and not _TURN.match(value)


def read_messages(value: Any, what: str) -> list[Message]:
    """The messages of a list of {"role", "content"}, of a transcript, or of plain text: one of the user.

    A transcript begins "\\n\\nHuman:" and marks its turns so, as those of hh-rlhf.

    Raises:
        ValueError: neither of them, another role, tool calls, or a message without text; names the message.
    """
    if isinstance(value, str) and _TURN.match(value):
        speakers, texts = _TURN.split(value)[1::2], _TURN.split(value)[2::2]
        value = [{"role": _SPEAKERS[name], "content": text} for name, text in zip(speakers, texts, strict=True)]
    if not isinstance(value, list):
        return [Message(role="user", content=read_text(value, what))]
    if not value:
        raise ValueError(f"{what} is empty")
    messages = []
    for number, message in enumerate(value, 1):
        name = f"message {number} of {what}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{name} is {shortened(message)}; it needs a role and a content")
        if message["role"] not in _ROLES:
            raise ValueError(f"{name} has the role {shortened(message['role'])}; choose from {', '.join(_ROLES)}")
        if used := [key for key in _TOOLS if message.get(key)]:
            raise ValueError(f"{name} has {used[0]}; calls of tools are not supported")
        messages.append(Message(role=message["role"], content=read_text(message["content"], name)))
    return messages


def without_cue(value: Any) -> Any:
    """A transcript without the "Assistant:" at its end, which asks for the answer; anything else unchanged."""
    return value if not isinstance(value, str) or is_plain(value) else _CUE.sub("", value)


def read_prompt(value: Any, what: str) -> list[Message]:
    """A conversation that waits for an answer; answers at its end are left out, since the agents give theirs.

    Raises:
        ValueError: as `read_messages`, or no message of the user.
    """
    messages = read_messages(without_cue(value), what)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user":
        raise ValueError(f"{what} ends with no message of the user")
    return messages


def flat(messages: str | Sequence[Message]) -> str:
    """The messages as one text, for models without roles: a blank line between two."""
    return messages if isinstance(messages, str) else "\n\n".join(message["content"] for message in messages)
