"""Chats as models read them: messages, templates, untrusted text, and padded batches of token ids."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_marl.errors import UsageError


class Message(TypedDict):
    role: str
    content: str


def neutralise(text: str, limit: int | None = None) -> str:
    """Make untrusted text safe inside a template: no control tokens, no delimiters, no control characters.

    Chat models mark roles with strings such as <|im_end|> or </s>, and our own templates delimit with tags; without
    angle brackets none of them can be written. Cut to `limit` characters.
    """
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    cut = printable if limit is None else printable[:limit]
    return cut.replace("<", "‹").replace(">", "›").strip()


def chat_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], budget: int) -> list[int]:
    """Token ids of a chat in the model's own template, ready to be answered; the last `budget` of them."""
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)[-budget:]


def check_chat_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise UsageError if the model cannot hold a dialogue."""
    if not tokenizer.chat_template:
        raise UsageError(f"{where}: the model's tokenizer has no chat template; choose a chat (instruct) model")


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation_ends: int | list[int] | None) -> list[int]:
    """All ids that end a response: the tokenizer's and the generation config's; the tokenizer's first."""
    ends = [generation_ends] if isinstance(generation_ends, int) else list(generation_ends or [])
    return list(dict.fromkeys([tokenizer.eos_token_id, *ends]))


def left_pad(sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (rows, longest), with the padding on the left."""
    longest = max(map(len, sequences))
    ids = torch.tensor([[pad] * (longest - len(s)) + list(s) for s in sequences], device=device)
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """(rows, length) position of each token among its row's real tokens; padding gets 0."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
