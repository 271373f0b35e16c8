"""The installed wheel: it contains the data folders of the checkout, and trains without the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_marl.files.jsonl import read_jsonl

ROOT = Path(__file__).parent.parent
FOLDERS = ("configs", "prompts", "reward_models")


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel and this environment's dependencies, but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    venv = folder / "venv"

    def python(*arguments: str | Path) -> None:
        subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True)

    python("hatchling", "build", "-t", "wheel", "-d", folder)
    python("venv", "--without-pip", venv)
    pip = ["pip", "--python", venv / "bin" / "python", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    python(*pip, next(folder.glob("*.whl")))
    # Last, since pip would take the checkout's installation among the dependencies for that of the wheel.
    (_site(venv) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return venv


def _site(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))


@pytest.fixture
def site(venv: Path) -> Path:
    """The folder in which the wheel is installed."""
    return _site(venv)


@pytest.fixture
def call(venv: Path, tmp_path: Path) -> Callable[..., str]:
    """Run a command of the virtual environment in tmp_path and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command: str, *arguments: str) -> str:
        done = subprocess.run(
            [venv / "bin" / command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_wheel_carries_every_data_file(site):
    for folder in FOLDERS:
        shipped = {path.name for path in (ROOT / folder).iterdir()}
        assert {path.name for path in (site / "rlhf_marl" / "data" / folder).iterdir()} == shipped


def test_wheel_carries_the_model_cards_template(site):
    assert (site / "rlhf_marl" / "hub" / "model_card.md.jinja").is_file()


def test_wheel_carries_the_parts_of_the_report(site):
    parts = {"report.html.j2", "report.css", "charts.js", "report.js", "plotly-cartesian.min.js"}
    assert parts < {path.name for path in (site / "rlhf_marl" / "reporting").iterdir()}


def test_data_is_found_from_an_empty_folder(site, call):
    code = (
        "import rlhf_marl; from rlhf_marl.config import load_config; from rlhf_marl.rewards import load_card\n"
        "config = load_config('configs/trained.yaml')\n"
        "print(rlhf_marl.__file__, *(load_card(a.reward_model, 'x').name for a in config.agents))"
    )
    names = ["trained-harmless", "trained-helpful", "trained-courteous"]
    assert call("python", "-c", code).split() == [str(site / "rlhf_marl" / "__init__.py"), *names]


@pytest.mark.slow
@pytest.mark.real_model
def test_quickstart_from_an_empty_folder(site, call, tmp_path):
    assert call("python", "-c", "import rlhf_marl; print(rlhf_marl.__path__)").strip() == str([str(site / "rlhf_marl")])
    short = ["--iterations=1", "--dialogues=2", "--turns=1", "--generation.max_new_tokens=8"]
    call("rlhf-marl", "train", "configs/quickstart.yaml", "--run-dir", "runs/a", *short)
    cards = json.loads((tmp_path / "runs" / "a" / "reward_models.json").read_text())
    assert [card["name"] for card in cards] == ["harmless", "helpful", "courteous"]
    assert [row["agent"] for row in read_jsonl(tmp_path / "runs" / "a" / "metrics.jsonl")] == [0, 1, 2]
    call("rlhf-marl", "report", "runs/a", "--out", "page.html")
    assert (tmp_path / "page.html").read_text() == (tmp_path / "runs" / "a" / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "page.html"}
