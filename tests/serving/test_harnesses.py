"""lm-eval and inspect-ai against a server, as docs/evaluation.md shows; skipped where they are not installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.server import serving

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text("utf-8")
SECTION = DOCUMENT.partition("## With other harnesses")[2].partition("\n## ")[0]
pytestmark = pytest.mark.slow


@pytest.fixture
def ask(tmp_path, loaded_run):
    """Write the document's files and run a module with these arguments; `URL` in them is the server's address."""

    def call(module: str, *arguments: str) -> str:
        pytest.importorskip(module)
        with serving(loaded_run) as server:
            environment = {"RLHF_MARL_BASE_URL": server.url, "RLHF_MARL_API_KEY": "EMPTY", "OPENAI_API_KEY": "EMPTY"}
            command = [sys.executable, "-m", module, *(one.replace("URL", server.url) for one in arguments)]
            return subprocess.run(
                command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, check=True
            ).stdout

    (tmp_path / "tasks").mkdir()
    for kind, file in (("json", "tasks/capitals.jsonl"), ("yaml", "tasks/capitals.yaml"), ("python", "capitals.py")):
        (tmp_path / file).write_text(re.search(rf"```{kind}\n(.*?)```", SECTION, re.DOTALL)[1])
    return call


def test_lm_eval(ask, tmp_path):
    options = ("--apply_chat_template", "--include_path", "tasks", "--tasks", "capitals", "--output_path", "out")
    model = "model=base,base_url=URL/chat/completions,num_concurrent=1"
    ask("lm_eval", "run", "--model", "local-chat-completions", "--model_args", model, *options)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["capitals"]["exact_match,first"] == 0.0  # of a random model


def test_inspect(ask, tmp_path):
    options = ("--max-tokens", "16", "--temperature", "0", "--display", "plain", "--log-format", "json")
    ask("inspect_ai", "eval", "capitals.py", "--model", "openai-api/rlhf-marl/team", *options)
    (log,) = (tmp_path / "logs").glob("*.json")
    result = json.loads(log.read_text())
    assert result["status"] == "success"
    assert result["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.0
    assert len(result["samples"]) == 4
