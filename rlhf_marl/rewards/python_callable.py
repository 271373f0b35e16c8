"""A Python function as reward model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, final

from pydantic import Field

from rlhf_marl.config.schema import FunctionReference
from rlhf_marl.files.functions import load_function
from rlhf_marl.rewards.base import CardBase, RewardModel, absolute


class CallableCard(CardBase):
    """A Python function f(prompts, responses, **arguments) -> scores."""

    kind: Literal["callable"]
    function: FunctionReference
    """module:function, or file.py:function."""
    convention: Literal["rlhf_marl", "trl"] = "rlhf_marl"
    """trl: called as TRL's reward functions are, f(prompts=..., completions=..., **arguments)."""
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)

    def build(self, base: Any, journal: Any) -> RewardModel:
        return PythonCallable(self)

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

    def __init__(self, card: CallableCard) -> None:
        self._function = load_function(card.function, f"card {card.name}: function")
        self._trl = card.convention == "trl"
        self._arguments = dict(card.arguments)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if self._trl:
            return self._function(prompts=list(prompts), completions=list(responses), **self._arguments)
        return self._function(list(prompts), list(responses), **self._arguments)
