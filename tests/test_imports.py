"""Folders import one way: files, runs, evaluation, reporting and sharing, cli."""

import ast
from pathlib import Path

import pytest

import rlhf_marl

PACKAGE = Path(rlhf_marl.__file__).parent
MAY_NOT_IMPORT = {
    "files": {"runs", "evaluation", "reporting", "sharing", "cli"},
    "runs": {"evaluation", "reporting", "sharing", "cli"},
    "evaluation": {"reporting", "sharing", "cli"},
    "reporting": {"sharing", "cli"},
    "sharing": {"reporting", "cli"},
}


@pytest.mark.parametrize("folder", MAY_NOT_IMPORT)
def test_no_import_runs_back(folder):
    imported = {
        node.module.split(".")[1]
        for path in (PACKAGE / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rlhf_marl.")
    }
    assert not imported & MAY_NOT_IMPORT[folder]
