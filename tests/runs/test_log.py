"""Warnings in a run's log file."""

import logging

from rlhf_marl.runs.log import warnings_to

LOG = logging.getLogger("rlhf_marl")


def test_warnings_are_appended_and_inert(tmp_path, caplog):
    file = tmp_path / "train.log"
    with warnings_to(file):
        LOG.warning("first \x1b[31m")
        LOG.info("not this")
    LOG.warning("after")
    with warnings_to(file):
        LOG.warning("second")
    lines = file.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["WARNING first \\x1b[31m", "WARNING second"]
    assert [record.message for record in caplog.records] == ["first \\x1b[31m", "after", "second"]


def test_warnings_are_still_printed_where_nothing_else_handles_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LOG, "hasHandlers", lambda: False)
    with warnings_to(tmp_path / "train.log"):
        LOG.warning("seen")
    assert capsys.readouterr().err == "seen\n"
