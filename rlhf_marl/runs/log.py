"""The log file of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_marl.errors import inert

_log = logging.getLogger("rlhf_marl")


@contextmanager
def warnings_to(file: Path) -> Iterator[None]:
    """Context in which the toolkit's warnings are also appended to a file; they are still printed as before."""
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8", delay=True)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers[0].addFilter(inert)
    if not _log.hasHandlers():  # logging prints warnings by itself only if there is no handler
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setLevel(logging.WARNING)
        _log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            _log.removeHandler(handler)
            handler.close()
