"""The map in docs/architecture.md is true: folders import one way, the algorithm imports only torch."""

import ast
import re
import sys
from pathlib import Path

import pytest

import rlhf_marl

PACKAGE = Path(rlhf_marl.__file__).parent
ROOT = PACKAGE.parent
# Every folder may import those before it; modules at the top of the package (api.py, ...) may import all.
ORDER = (
    *("perf", "files", "algorithm", "config", "policy", "services", "rewards", "runs", "dialogue", "training"),
    *("distributed", "evaluation", "hub", "reporting", "sweeps", "gridworld", "cli"),
)
AT_THE_BOTTOM = {"errors", "sanitise"}  # modules that every folder may import


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def folders_of(names: set[str]) -> set[str]:
    """Which parts of the package are among the imported modules."""
    return {name.split(".")[1] for name in names if name.startswith("rlhf_marl.")}


def test_the_order_names_every_folder():
    assert set(ORDER) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", ORDER)
def test_folders_import_one_way(folder):
    allowed = AT_THE_BOTTOM.union(ORDER[: ORDER.index(folder) + 1], {"api"} if folder == "cli" else ())
    found = {path.name: folders_of(imported(path)) - allowed for path in (PACKAGE / folder).rglob("*.py")}
    assert {name: back for name, back in found.items() if back} == {}


def test_the_algorithm_imports_torch_and_itself_alone():
    names = {name for path in (PACKAGE / "algorithm").glob("*.py") for name in imported(path)}
    foreign = {name for name in names if not name.startswith("rlhf_marl.algorithm")}
    assert {name.split(".")[0] for name in foreign} - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_the_map_names_every_folder(document):
    text = (ROOT / document).read_text("utf-8")
    assert set(re.findall(r"^\| `rlhf_marl/(\w+)/` \|", text, re.MULTILINE)) == set(ORDER)


def test_paths_in_the_architecture_page_exist():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    paths = re.findall(r"`((?:rlhf_marl|tests|configs|docs|benchmarks|reward_models)/[\w/.]+)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
