"""The command line as a user meets it: in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlhf_marl.run_directory import read_jsonl


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_marl", *arguments]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment, check=False)


@pytest.fixture
def config_file(tiny_content: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content))
    return path


def test_help_does_not_import_torch():
    code = "import sys; from rlhf_marl.cli import cli; cli(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "train" in answer
    assert answer.rstrip().endswith("False")


def test_train_resume_and_the_summary(config_file, tmp_path):
    first = run("train", str(config_file), "--run-dir", "out", "--iterations", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "iteration 1/1  reward vowels" in first.stderr
    assert "run directory: out" in first.stderr
    again = run("train", str(config_file), "--run-dir", "out", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "error: --run-dir: 'out' already exists; add --resume to go on, or choose another name\n"
    resumed = run("train", str(config_file), "--run-dir", "out", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {row["iteration"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")} == {0, 1}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--topology.grph", "ring"], "topology.grph: unknown key (value 'ring'); did you mean 'graph'?"),
        (["--topology.graph", "explicit", "--topology.edges", "[[0, 5]]"], "topology: edges: [0, 5] must name two"),
        (
            ["--topology.graph", "explicit", "--topology.edges", "[]"],
            "topology: graph: explicit with edges [] does not connect all 2 agents",
        ),
        (
            ["--topology.matrix", "given", "--topology.weights", "[[0.5, 0.5], [0.5, 0.4]]"],
            "topology: matrix: not doubly stochastic: row 1 sums to 0.9, not to 1",
        ),
        (["--actor.step_size", "-1"], "actor.step_size: -1 given; input should be greater than 0"),
        (["--agents.0.reward_model", "no.yaml"], "agents.0.reward_model: 'no.yaml' does not exist"),
        (["--model.name", "."], "model.name: '.' is not a model folder: it has no config.json"),
        (["--model.name", "org/gone"], "model.name: 'org/gone' cannot be reached on the hub and is not in its cache"),
        (
            ["--prompts.question", "long " * 30],
            "prompts: prompt 1 ('long long long long long long long long '...) is ",
        ),
        (["--generation.max_prompt_tokens", "600"], "generation: max_prompt_tokens + max_new_tokens is 606; "),
        (["--controller.kind", "openai", "--controller.model", "m"], "controller.api_key_env: the environment variable"),
        (["--resume"], "--resume: needs --run-dir"),
        (["--tracker", "wandb"], "tracker: 'wandb' is not installed: pip install wandb"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(config_file, tmp_path, options, line):
    result = run("train", str(config_file), *options, cwd=tmp_path)
    errors = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1
    assert line in errors[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()  # told before anything is written


def test_ctrl_c_saves_and_the_run_can_go_on(config_file, tmp_path):
    process = subprocess.Popen(
        command("train", str(config_file), "--run-dir", "out", "--iterations", "10000", "--checkpoint_every", "10000"),
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "this iteration is finished and saved first" in errors
    done = len({row["iteration"] for row in read_jsonl(metrics)})
    resumed = run(
        "train", str(config_file), "--run-dir", "out", "--resume", "--iterations", str(done + 1), cwd=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    assert {row["iteration"] for row in read_jsonl(metrics)} == set(range(done + 1))


def test_schema_is_json():
    schema = json.loads(run("schema").stdout)
    assert schema["properties"]["topology"]
