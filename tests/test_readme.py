"""The README's Python example runs unchanged, and the files and commands it names exist."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.real_model
def test_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, names)
    printed = capsys.readouterr().out
    assert "harmless" in printed
    assert "how do I threaten others?" in printed
    assert sorted(re.findall(r"^(\d) \S", printed, re.MULTILINE)) == ["0", "1", "2"]  # the agents' answers
    assert names["policy"].active_adapter == "default"


NAMED = set(re.findall(r"[\w/]+/[\w]+\.(?:yaml|md|py)\b", README)) - {"reward_models/x.yaml", "runs/a/config.yaml"}


@pytest.mark.parametrize("path", sorted(NAMED))
def test_named_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"])
def test_no_placeholders_are_left(path):
    assert not re.search(r"^\|? ?[A-Z]{4,}( \|)?$|\| [A-Z]{5,} \|", path.read_text("utf-8"), re.MULTILINE)


def test_every_shipped_card_is_listed():
    for card in (ROOT / "reward_models").glob("*.yaml"):
        assert f"`{card.stem}`" in README


def test_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_every_extra_is_listed():
    section = README.split("\n## Extras\n")[1].split("\n## ")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(project["optional-dependencies"])
