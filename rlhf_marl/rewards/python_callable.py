"""A Python function as reward model."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import final

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards.card import CallableCard
from rlhf_marl.sanitise import first_line


@final
class PythonCallable:
    """Calls the function, in our convention or in TRL's; it is imported when the model is built."""

    def __init__(self, card: CallableCard) -> None:
        source, _, name = card.function.rpartition(":")
        try:
            self._function = getattr(_file(source) if source.endswith(".py") else _module(source), name)
        except Exception as error:  # whatever a user's module raises while it is imported
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"card {card.name}: function: cannot import {card.function!r}: {reason}") from None
        if not callable(self._function):
            raise UsageError(f"card {card.name}: function: {card.function!r} is not a function")
        self._trl = card.convention == "trl"
        self._arguments = dict(card.arguments)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if self._trl:
            return self._function(prompts=list(prompts), completions=list(responses), **self._arguments)
        return self._function(list(prompts), list(responses), **self._arguments)


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look in the working folder by itself
    return importlib.import_module(name)


def _file(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None  # as the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
