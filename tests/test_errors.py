"""Exit codes, and log lines that cannot act in a terminal."""

import logging

import pytest

from rlhf_marl.errors import RlhfMarlError, RunStopped, UsageError, inert


@pytest.mark.parametrize(("kind", "code"), [(RlhfMarlError, 1), (UsageError, 2), (RunStopped, 3)])
def test_exit_codes(kind, code):
    assert issubclass(kind, RlhfMarlError)
    assert kind("x").exit_code == code


def test_a_log_record_is_made_inert():
    record = logging.LogRecord("x", logging.WARNING, "f.py", 1, "said %s, %d times", ("\x1b[31m\n", 2), None)
    assert inert(record)
    assert record.getMessage() == "said \\x1b[31m\\n, 2 times"
