"""The wheel contains the data folders of the checkout: configs, prompts and reward models."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("configs", "prompts", "reward_models")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(site)
    return site


def test_wheel_carries_every_data_file(site):
    for folder in FOLDERS:
        shipped = {path.name for path in (ROOT / folder).iterdir()}
        assert {path.name for path in (site / "rlhf_marl" / "data" / folder).iterdir()} == shipped


def test_wheel_carries_the_model_cards_template(site):
    assert (site / "rlhf_marl" / "hub" / "model_card.md.jinja").is_file()


def test_wheel_carries_the_parts_of_the_report(site):
    parts = {"report.html.j2", "report.css", "charts.js", "report.js", "plotly-cartesian.min.js"}
    assert parts < {path.name for path in (site / "rlhf_marl" / "reporting").iterdir()}


def test_data_is_found_from_an_empty_folder(site, tmp_path):
    code = (
        "import rlhf_marl; from rlhf_marl.config import load_config; from rlhf_marl.rewards import load_card\n"
        "config = load_config('configs/trained.yaml')\n"
        "print(rlhf_marl.__file__, *(load_card(a.reward_model, 'x').name for a in config.agents))"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    names = ["trained-harmless", "trained-helpful", "trained-courteous"]
    assert printed.split() == [str(site / "rlhf_marl" / "__init__.py"), *names]
