"""The errors a user can cause or meet. The CLI prints each as one line, without a traceback.

RlhfMarlError
├── UsageError   the input is wrong (config, card, folder, argument); exit code 2
└── RunStopped   a started run cannot go on (bad score, service down); it is readable and resumable; exit code 3
"""

import logging


class RlhfMarlError(Exception):
    """Base of the toolkit's own errors."""

    exit_code = 1


class UsageError(RlhfMarlError):
    """Wrong input: the message names the file, the key, what was given and what is allowed."""

    exit_code = 2


class RunStopped(RlhfMarlError):
    """A run that had started cannot go on; its run directory is readable and can be resumed."""

    exit_code = 3


def inert(record: logging.LogRecord) -> bool:
    """A filter for loggers: what a warning repeats cannot act in a terminal."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, for a line of ours: its first line, cut; its type if it says nothing."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:200])


def printable(text: str) -> str:
    """The text with everything escaped that would act in a terminal: control and bidi characters, line ends."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
