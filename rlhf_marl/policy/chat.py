"""Messages, chat templates, stop tokens, and sanitising untrusted text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2 import TemplateError

from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(TypedDict):
    role: str
    content: str


def plain_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Sanitise text: insert a space into every string that the tokenizer would read as a special token."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in added.union(tokenizer.all_special_tokens):
        if token in text:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def chat_tokens(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], budget: int) -> list[int]:
    """Token ids of a chat in the model's template, with the generation prompt; only the last `budget` are kept.

    Special tokens come only from the template, never from a message's content. If the template does not accept a
    system message, its text is prepended to the first user message.
    """
    ids = list(templated(tokenizer, messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    return ids[max(0, len(ids) - budget) :]


def templated(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], **options: Any) -> Any:
    """What the tokenizer's `apply_chat_template` makes of a chat with these options, as in `chat_tokens`."""
    plain = [Message(role=m["role"], content=plain_text(tokenizer, m["content"])) for m in messages]
    try:
        return tokenizer.apply_chat_template(plain, **options)
    except TemplateError:
        if plain[0]["role"] != "system" or len(plain) < 2:
            raise
        first = Message(role="user", content=f"{plain[0]['content']}\n\n{plain[1]['content']}")
        return tokenizer.apply_chat_template([first, *plain[2:]], **options)


def check_chat_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise UsageError if the template cannot render a dialogue, with or without a system message."""
    if not tokenizer.chat_template:
        raise UsageError(f"{where}: the model's tokenizer has no chat template; choose a chat (instruct) model")
    roles = ("system", "user", "assistant", "user")
    try:
        chat_tokens(tokenizer, [Message(role=role, content="text") for role in roles], 1)
    except TemplateError as error:
        raise UsageError(f"{where}: the chat template refuses a dialogue: {first_line(error)}") from None


def stop_tokens(tokenizer: "PreTrainedTokenizerBase", generation_ends: int | list[int] | None) -> list[int]:
    """All stop tokens: the tokenizer's end token first, then those of the generation config."""
    ends = [generation_ends] if isinstance(generation_ends, int) else list(generation_ends or [])
    return list(dict.fromkeys([tokenizer.eos_token_id, *ends]))
