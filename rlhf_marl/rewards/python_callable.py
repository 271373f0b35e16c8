"""A Python function as reward model."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, final

from pydantic import Field, model_validator

from rlhf_marl.config.schema import FunctionReference
from rlhf_marl.errors import UsageError
from rlhf_marl.files.functions import load_function
from rlhf_marl.rewards.base import CardBase, Conversation, DataRow, RewardModel, absolute
from rlhf_marl.sanitise import printable

if TYPE_CHECKING:
    from rlhf_marl.policy.sampler import Sampler

_OF_TRL = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
_NO_COLUMNS = _OF_TRL | {"prompt", "completion"}  # names of columns that TRL's trainers do not hand on


class CallableCard(CardBase):
    """A Python function f(prompts, responses, **arguments) -> scores."""

    kind: Literal["callable"]
    function: FunctionReference
    """module:function, or file.py:function."""
    convention: Literal["rlhf_marl", "trl"] = "rlhf_marl"
    """trl: called as TRL's reward functions are, f(prompts=..., completions=..., completion_ids=..., **arguments), with
    the further columns of the data that it takes."""
    conversational: bool = False
    """trl: prompts and completions are lists of messages, as with conversational data in TRL, instead of texts."""
    context: Literal["last", "dialogue"] = "last"
    """With `conversational`: whether a prompt is the last message alone, or the whole dialogue with its roles."""
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> "CallableCard":
        if self.conversational and self.convention != "trl":
            raise ValueError("conversational: only with convention: trl")
        if self.reads_dialogue and not self.conversational:
            raise ValueError("context: dialogue needs conversational: true")
        return self

    @property
    def reads_dialogue(self) -> bool:
        return self.context == "dialogue"

    @property
    def reads_rows(self) -> bool:
        return self.convention == "trl"

    def check_columns(self, columns: Collection[str], where: str) -> None:
        if not self.reads_rows:
            return
        function = load_function(self.function, f"card {self.name}: function")
        accepted = _accepted(function)
        given = [name for name in columns if name not in _NO_COLUMNS]
        if twice := [name for name in given if name in self.arguments and ("**" in accepted or name in accepted)]:
            raise UsageError(f"card {self.name}: arguments: {twice[0]} is also a column of the data ({where})")
        needed = [name for name in _required(function) if name not in {*_OF_TRL, *self.arguments, *given}]
        if needed:
            has = f"its columns are {printable(', '.join(given))[:200]}" if given else "it has no further columns"
            raise UsageError(
                f"{where}: reward model {self.name}: {self.function} needs a column {needed[0]!r} of the data; {has}"
            )

    def build(self, base: "Sampler | None", journal: Any) -> RewardModel:
        return PythonCallable(self, base)

    def scores_with(self) -> str:
        return self.function

    def available(self) -> str:
        return "yes"

    def in_words(self) -> str:
        name = re.split(r"[/\\]", self.function)[-1]  # without local paths
        return f"Python function {name}"

    def beside(self, folder: Path) -> Self:
        file, _, name = self.function.rpartition(":")
        if not file.endswith(".py"):
            return self
        return self.model_copy(update={"function": f"{absolute(file, folder)}:{name}"})


@final
class PythonCallable:
    """Calls the function in our convention or TRL's; it is imported when the model is built."""

    def __init__(self, card: CallableCard, base: "Sampler | None" = None) -> None:
        """base: its tokenizer gives TRL's `completion_ids`."""
        self._function = load_function(card.function, f"card {card.name}: function")
        self._card, self._tokenizer = card, base.tokenizer if base else None
        self._accepted = _accepted(self._function)
        if card.convention == "trl" and self._tokenizer is None and "completion_ids" in self._accepted:
            raise UsageError(
                f"card {card.name}: function: {card.function} needs completion_ids, and outside a run there are no "
                "agents whose tokenizer gives them"
            )

    def score(
        self, prompts: Sequence[Conversation], responses: Sequence[str], rows: Sequence[DataRow] = ()
    ) -> list[float]:
        if self._card.convention == "trl":
            scores = self._function(**self._trl_arguments(prompts, responses, rows), **self._card.arguments)
        else:
            scores = self._function(list(prompts), list(responses), **self._card.arguments)
        return asyncio.run(_awaited(scores)) if inspect.isawaitable(scores) else scores

    def _trl_arguments(
        self, prompts: Sequence[Conversation], responses: Sequence[str], rows: Sequence[DataRow]
    ) -> dict[str, Any]:
        """What TRL's trainers pass, as far as the function takes it. A column is None in rows that lack it."""
        asked: list[Any] = list(prompts)
        answers: list[Any] = list(responses)
        if self._card.conversational:
            asked = [[{"role": "user", "content": p}] if isinstance(p, str) else [dict(m) for m in p] for p in prompts]
            answers = [[{"role": "assistant", "content": text}] for text in responses]
        columns = dict.fromkeys(name for row in rows for name in row if name not in _NO_COLUMNS)
        given: dict[str, Any] = {name: [row.get(name) for row in rows] for name in columns}
        given |= {"prompts": asked, "completions": answers}
        given |= {"trainer_state": None, "log_extra": _ignored, "log_metric": _ignored}
        if self._tokenizer is not None:
            given["completion_ids"] = [
                self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in responses
            ]
        return {name: value for name, value in given.items() if name in self._accepted or "**" in self._accepted}


def _accepted(function: Callable[..., Any]) -> set[str]:
    """Names of the function's parameters; ** if it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in function
        return {"prompts", "completions"}
    return {"**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters}


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a built-in function
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def _ignored(*values: object, **named: object) -> None:
    """Stands in for TRL's logging functions."""


async def _awaited(scores: Awaitable[list[float]]) -> list[float]:
    return await scores
