"""The global state s_k: the dialogue so far, as tokens. And the guard every text that a model wrote passes first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from rlhf_marl.errors import UsageError


class Message(TypedDict):
    role: str
    content: str


@dataclass(slots=True)
class Dialogue:
    """One dialogue in progress.

    Attributes:
        index: number of the dialogue within the run, from 0.
        question: index of its first question in the prompt source.
        messages: alternating user prompts and aggregated answers; the last one is the prompt to answer.
    """

    index: int
    question: int
    messages: list[Message] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]

    def advance(self, aggregate: str, next_prompt: str) -> None:
        """The state transition: the team's answer and the controller's next prompt join the dialogue."""
        self.messages += [
            Message(role="assistant", content=neutralise(aggregate)),
            Message(role="user", content=neutralise(next_prompt)),
        ]


def neutralise(text: str, limit: int | None = None) -> str:
    """Make untrusted text safe inside a template: no control tokens, no delimiters, no control characters.

    Chat models mark roles with strings such as <|im_end|> or </s>, and our own templates delimit with tags; without
    angle brackets none of them can be written. Cut to `limit` characters.
    """
    printable = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    cut = printable if limit is None else printable[:limit]
    return cut.replace("<", "‹").replace(">", "›").strip()


def state_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], budget: int) -> list[int]:
    """Token ids of the dialogue in the model's own chat template, ready to be answered; the last `budget` of them."""
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
