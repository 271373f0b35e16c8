"""Functions that users name in a config or a card: module:function, or file.py:function."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.sanitise import first_line


def load_function(reference: str, where: str) -> Callable[..., Any]:
    """Import the function. Raises UsageError, whose message begins with `where`, if that fails for any reason."""
    home, _, name = reference.rpartition(":")
    try:
        function = getattr(_file(home) if home.endswith(".py") else _module(home), name)
    except Exception as error:  # a user's module may raise anything on import
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{where}: cannot import {reference!r}: {reason}") from None
    if not callable(function):
        raise UsageError(f"{where}: {reference!r} is not a function")
    return function


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # console scripts do not have the working folder on sys.path
    return importlib.import_module(name)


def _file(path: str) -> ModuleType:
    name = str(Path(path).resolve())  # a path is no module's name, so it hides none
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # because the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
