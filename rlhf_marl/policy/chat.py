"""Messages, chat templates, stop tokens, and sanitising untrusted text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2 import TemplateError

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
    """Token ids of a chat in the model's template, with the generation prompt: at most `budget`.

    A longer chat loses its oldest messages, then its system message; a last message that is still too long is cut from
    the left, after the beginning token. Special tokens come only from the template, never from a message's content.

    Raises:
        TemplateError: the template refuses the messages.
    """

    def ids_of(kept: Sequence[Message]) -> list[int]:
        return list(templated(tokenizer, kept, add_generation_prompt=True, return_dict=True)["input_ids"])

    ids = ids_of(messages)
    system, turns = (messages[:1], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    while len(ids) > budget and len(turns) > 1:
        turns = turns[1:]
        if turns[0]["role"] == "user":  # templates begin with a user's message
            ids = ids_of([*system, *turns])
    if len(ids) > budget and system and turns:
        ids = ids_of(turns)
    if len(ids) <= budget:
        return ids
    begin = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    return begin + ids[len(ids) - budget + len(begin) :]


def templated(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], **options: Any) -> Any:
    """What the tokenizer's `apply_chat_template` makes of a chat with these options, as in `chat_tokens`."""
    plain = [Message(role=m["role"], content=plain_text(tokenizer, m["content"])) for m in messages]
    try:
        return tokenizer.apply_chat_template(plain, **options)
    except TemplateError:
        raise
    except Exception as error:  # an expression in a template can raise anything
        raise TemplateError(f"{type(error).__name__}: {error}") from None


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase", generation_ends: int | list[int] | None, turn_end: int | None
) -> list[int]:
    """All stop tokens: the tokenizer's end token, those of the generation config, the one that ends a turn."""
    ends = [generation_ends] if isinstance(generation_ends, int) else list(generation_ends or [])
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, *ends, turn_end]) if end is not None]
