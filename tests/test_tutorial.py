"""The tutorial's code runs, with a tiny model in seconds and as it stands in minutes."""

import ast
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import pyplot

from tests.conftest import write_card

ROOT = Path(__file__).parent.parent
CELLS = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
PARAMETERS = ["config_file", "options", "question", "judge", "n_questions", "folder"]


def _assigned(cell: dict[str, Any]) -> list[str]:
    return [target.id for line in ast.parse("".join(cell["source"])).body for target in line.targets]


def _execute(cells: Sequence[dict[str, Any]], names: dict[str, Any]) -> dict[str, Any]:
    for cell in cells:
        exec("".join(cell["source"]), names)
    return names


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """The notebook's working folder; the processes it starts find the package and the tests' reward functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    backend = pyplot.get_backend()
    pyplot.switch_backend("agg")
    yield tmp_path
    pyplot.close("all")
    pyplot.switch_backend(backend)


def test_no_output_is_stored():
    assert [cell for cell in CODE if cell["outputs"] or cell["execution_count"] is not None] == []


def test_parameters_are_in_one_tagged_cell():
    tagged = [cell for cell in CODE if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == CODE[:1]
    assert _assigned(tagged[0]) == PARAMETERS


def test_linked_documents_exist():
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    linked = {part.split(")")[0] for part in text.split("](")[1:]}
    assert "experiments.md" in linked
    assert [name for name in linked if not (ROOT / "docs" / name).is_file()] == []


def test_every_cell_runs_with_a_tiny_model(quick_content, empty_folder, capsys):
    (empty_folder / "tiny.yaml").write_text(yaml.safe_dump(quick_content))
    (empty_folder / "codes.py").write_text(
        "def codes(prompts, responses):\n    return [sum(map(ord, r)) for r in responses]\n"
    )
    judge = write_card(empty_folder, "codes", "codes.py:codes")
    given = ["tiny.yaml", ["--iterations=1"], "Noise?", str(judge), 2, "out"]
    names = _execute(CODE[1:], dict(zip(PARAMETERS, given, strict=True)))

    models = {name: set(run.metrics["reward_model"]) for name, run in names.items() if name in ("shipped", "brief")}
    assert models == {"shipped": {"vowels", "length"}, "brief": {"vowels", "brief"}}
    words = [len(responses[1]["text"].split()) for responses in names["brief"].dialogues["responses"]]
    rewards = names["brief"].metrics.query("agent == 1")["reward_scaled"]
    assert rewards.mean() == pytest.approx((10 - sum(words) / len(words)) / 4)
    assert names["comparison"].index.tolist() == [("shipped", 0), ("shipped", 1), ("brief", 0), ("brief", 1)]
    assert names["comparison"].loc[("brief", 1), "reward model"] == "brief"
    assert [len(pyplot.figure(number).axes[0].lines) for number in pyplot.get_fignums()] == [2, 2]
    printed = capsys.readouterr().out
    assert "agent 1 is rewarded by" in printed
    assert "agent 1, untrained" in printed
    assert "adapter_model.safetensors" in printed


@pytest.mark.slow
@pytest.mark.real_model
def test_notebook_runs_as_it_stands(capsys):
    names = _execute(CODE, {})
    assert set(names["comparison"]["reward model"]) == {"harmless", "helpful", "courteous", "brief"}
    # With twelve questions there are verdicts.
    assert not names["comparison"]["verdict"].str.contains("too few").any()
    assert "My neighbour is noisy" in capsys.readouterr().out
