"""The command line: messages and exit codes, and Ctrl-C in a subprocess."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlhf_marl.files.jsonl import read_jsonl
from tests.servers import Reply, serving


@pytest.fixture
def config_file(tiny_content: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content))
    return path


def test_help_does_not_import_torch():
    code = (
        "import sys; from rlhf_marl.cli.commands import cli; cli(['-h'], standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "train" in answer
    assert answer.rstrip().endswith("False")


@pytest.mark.parametrize("group", [(), ("reward",)])
def test_summaries_are_whole_sentences(run, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    _, printed, _ = run(*group, "--help")
    summaries = [line for line in printed.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert len(summaries) >= 6
    assert all(line.endswith(".") and not line.endswith("...") for line in summaries)


def test_train_resume_and_the_summary(run, config_file, tmp_path):
    code, _, errors = run("train", str(config_file), "--run-dir", "out", "--iterations", "1")
    assert code == 0, errors
    assert "iteration 1/1  reward vowels" in errors
    assert "run directory: out" in errors
    assert errors.startswith("2 agents over ")
    assert "ring graph; 2 updates in 1 iteration of 2 dialogues, 2 turns each\n" in errors
    log = (tmp_path / "out" / "train.log").read_text()
    assert "iteration 1/1  reward vowels" in log
    assert "\x1b" not in log
    code, _, errors = run("train", str(config_file), "--run-dir", "out")
    assert code == 2
    assert errors == "error: --run-dir: 'out' already exists; add --resume to continue it, or choose another\n"
    code, _, errors = run("train", "out/config.yaml", "--run-dir", "out", "--resume", "--iterations", "2")
    assert code == 0, errors
    assert {row["iteration"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")} == {0, 1}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--topology.grph", "ring"], "topology.grph: unknown key (value 'ring'); did you mean 'graph'?"),
        (["--topology.graph", "rng"], "topology.graph: 'rng' is not allowed; choose 'ring', 'complete', 'star'"),
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
        (
            ["--controller.kind", "openai", "--controller.model", "m"],
            "controller: api_key_env: the environment variable",
        ),
        (["--resume"], "--resume: needs --run-dir"),
        (["--tracker", "wandb"], "tracker: 'wandb' is not installed: pip install wandb"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, config_file, tmp_path, options, line):
    code, _, errors = run("train", str(config_file), *options)
    found = [text for text in errors.splitlines() if text.startswith("error: ")]
    assert code == 2, errors
    assert len(found) == 1
    assert line in found[0]
    assert not (tmp_path / "runs").exists()  # told before anything is written


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(["trian"], "Error: No such command 'trian'."), (["train"], "Error: Missing argument 'CONFIG'.")],
)
def test_a_wrong_command_shows_its_usage(run, arguments, line):
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.startswith("Usage: ")
    assert line in errors


def test_ctrl_c_saves_and_the_run_can_go_on(run, config_file, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_marl", "train", str(config_file), "--run-dir", "out", "--iterations", "10000"],
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
    assert "stopping after this iteration is finished and saved" in errors
    assert (tmp_path / "out" / "report.html").is_file()
    done = len({row["iteration"] for row in read_jsonl(metrics)})
    code, _, errors = run("train", str(config_file), "--run-dir", "out", "--resume", "--iterations", str(done + 1))
    assert code == 0, errors
    assert {row["iteration"] for row in read_jsonl(metrics)} == set(range(done + 1))


def test_a_gated_model_says_what_to_do(config_file, tmp_path):
    """A fake Hub answers every request like the real one for a gated model."""

    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/gated is restricted."}
    with serving(lambda request: Reply(403, headers=headers)) as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        answer = subprocess.run(
            [sys.executable, "-m", "rlhf_marl", "train", str(config_file), "--model.name", "org/gated"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | online | {"PYTHONPATH": str(Path.cwd())},
        )
    assert answer.returncode == 2, answer.stderr
    assert "model.name: 'org/gated' is gated or private: request access on its page, then set HF_TOKEN" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_schema_is_json(run):
    code, schema, _ = run("schema")
    assert code == 0
    assert json.loads(schema)["properties"]["topology"]


@pytest.mark.parametrize(("number", "code"), [(28, 3), (122, 3), (13, 1)], ids=["full", "quota", "forbidden"])
def test_a_full_disk_stops_every_command_with_exit_code_3(run, monkeypatch, number, code):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number), "report.html")

    monkeypatch.setattr("rlhf_marl.reporting.page.write_report", refuse)
    found, _, errors = run("report", "runs/a")
    assert found == code
    assert errors == f"error: report.html: {os.strerror(number)}\n"
