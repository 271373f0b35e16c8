"""`rlhf-marl evaluate`: printed and written results; tests/evaluation/test_evaluate.py runs complete evaluations."""

import json

import pytest

from rlhf_marl.cli import evaluate as command
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import read_evaluation
from tests.reporting.runs import write_run


def test_a_run_named_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a run directory is named twice"):
        command.evaluate([tmp_path, tmp_path], {}, None, None)


def test_what_is_printed_is_written_too(tmp_path, monkeypatch, capsys):
    paths = [write_run(tmp_path / name) for name in ("one", "two")]
    monkeypatch.setattr("rlhf_marl.evaluation.statistics.RESAMPLES", 99)
    monkeypatch.setattr(command, "check_run", lambda path: None)
    monkeypatch.setattr(command, "evaluate_run", lambda path, options, progress: read_evaluation(path))
    command.evaluate(paths, {"limit": None}, tmp_path / "all.json", tmp_path / "all.md")
    printed = capsys.readouterr()
    assert "trained against base: difference" in printed.out
    assert "reusing evaluation.json" in printed.err
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["reference"] == str(paths[0])
    assert list(found["compared_with_reference"]) == [str(paths[1])]
    assert (tmp_path / "all.md").read_text().count("## ") == 2
    assert (paths[1] / "report.html").is_file()
