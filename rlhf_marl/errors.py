"""The errors a user can cause or encounter. The CLI prints each as one line, without a traceback.

RlhfMarlError
├── UsageError   the input is wrong (config, card, folder, argument); exit code 2
└── RunStopped   a started run cannot continue (bad score, service down); it is readable and resumable; exit code 3
"""

import logging

from rlhf_marl.sanitise import printable


class RlhfMarlError(Exception):
    """Base of the toolkit's own errors."""

    exit_code = 1


class UsageError(RlhfMarlError):
    """Wrong input: the message names the file, the key, what was given and what is allowed."""

    exit_code = 2


class RunStopped(RlhfMarlError):
    """A started run cannot continue; its run directory is readable and can be resumed."""

    exit_code = 3


def inert(record: logging.LogRecord) -> bool:
    """Logging filter: escape control characters in the message."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True
