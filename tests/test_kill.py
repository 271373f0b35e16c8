"""Work that is killed at any write or moment, or stopped by a full disk, resumes with bit-identical results."""

import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import yaml

import rlhf_marl
from rlhf_marl.errors import RunStopped
from rlhf_marl.files.atomic import unwritable
from rlhf_marl.runs import checkpoints
from rlhf_marl.runs.directory import RunDirectory
from tests.conftest import write_card
from tests.killing import differing, state_of_run
from tests.rewards.test_sequence_classifier import saved


class FullDisk:
    """Lets `allowed` writes pass and has no room for the next ones: before them or, where text is written, within."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed: float = float("inf")
        self.writes = 0
        append, write_text = RunDirectory.append, Path.write_text

        def torn_append(run: RunDirectory, file: Path, rows) -> None:
            rows = list(rows)
            if self.counts():
                half = "".join(json.dumps(row) + "\n" for row in rows)
                with file.open("a") as stream:
                    stream.write(half[: len(half) // 2])
                raise unwritable(file, NO_ROOM)
            append(run, file, rows)

        def torn_write(file: Path, text: str, *arguments, **options) -> None:
            if self.counts():
                write_text(file, text[: len(text) // 2], *arguments, **options)
                raise NO_ROOM
            write_text(file, text, *arguments, **options)

        monkeypatch.setattr(RunDirectory, "append", torn_append)
        monkeypatch.setattr(Path, "write_text", torn_write)
        monkeypatch.setattr(os, "fsync", self.before(lambda descriptor: None))  # quicker than the real one
        for place, name in ((os, "replace"), (checkpoints, "save_file"), (shutil, "rmtree")):
            monkeypatch.setattr(place, name, self.before(getattr(place, name)))

    def counts(self) -> bool:
        self.writes += 1
        return self.writes > self.allowed

    def before(self, write):
        def refused(*arguments, **options):
            if self.counts() and not options.get("ignore_errors"):
                raise NO_ROOM
            return write(*arguments, **options)

        return refused


NO_ROOM = OSError(28, "No space left on device")


@pytest.fixture
def validated_content(quick_content, tmp_path) -> dict:
    """A config that is validated after every iteration."""
    write(tmp_path / "held_out", "questions.jsonl", {"id": "tea", "kind": "ordinary", "prompt": "What is tea?"})
    judge = write_card(tmp_path, "judge", "tests.conftest:few_vowels")
    validation = {"questions": str(tmp_path / "held_out" / "questions.jsonl"), "judges": [str(judge)], "every": 1}
    return quick_content | {"validation": validation}


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"])
def test_a_full_disk_at_every_write(validated_content, tmp_path, monkeypatch, step):
    """Once full, the disk stays full; then there is space again, and --resume."""
    monkeypatch.setattr("rlhf_marl.api.refresh_report", lambda path: None)  # it is made anew from what is there
    expected = state_of_run(rlhf_marl.train(validated_content, run_dir=tmp_path / "whole").path)
    disk = FullDisk(monkeypatch)
    for writes in count(step=step):
        path = tmp_path / str(writes)
        disk.writes, disk.allowed = 0, writes
        try:
            rlhf_marl.train(validated_content, run_dir=path)
        except RunStopped as stopped:
            disk.allowed = float("inf")
            assert "No space left on device" in str(stopped)  # noqa: PT017
            resume = (path / "config.yaml").is_file()
            run = rlhf_marl.train(validated_content, run_dir=path, resume=resume)
            assert differing(state_of_run(run.path), expected) == [], f"stopped at write {writes}"
        else:
            break
    assert writes > 40


def killed(folder: Path, **kills: int) -> dict:
    """The output of tests/killing.py."""
    command = [sys.executable, "-m", "tests.killing", str(folder), *(f"{kind}={n}" for kind, n in kills.items())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"NUMBA_THREADING_LAYER": "workqueue"}  # the others do not survive a fork
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr + answer.stdout
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    return {kind: found for line in lines for kind, found in json.loads(line).items()}


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))


ALL = {"writes": 1, "train": 50, "reward": 3, "study": 3}


@pytest.mark.parametrize(
    "wanted", [{"writes": 29, "train": 6}, pytest.param(ALL, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_killed_by_the_system(validated_content, quick_content, tmp_path, wanted):
    """SIGKILL: nothing is cleaned up. Each time the same command finishes the work, with --resume if a run had begun.

    A training at some or all of its writes; others, a reward model's training and a study at random moments.
    """
    write(tmp_path / "writes", "config.json", validated_content)
    # A controller that remembers what it read: its memory is lost, which must not show.
    shared = {"kind": "shared", "aggregate_tokens": 3, "next_prompt_tokens": 3}
    write(tmp_path / "train", "config.json", quick_content | {"iterations": 3, "controller": shared})
    if "reward" in wanted:
        rows = [{"prompt": f"{i}?", "chosen": "a" * (i % 7 + 4), "rejected": "z" * (i % 5 + 4)} for i in range(20)]
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        base = saved(tmp_path / "base", "deberta")["model"]
        card = {"name": "tiny", "kind": "trained", "data": str(pairs), "base": base, "epochs": 2.0}
        write(tmp_path / "reward", "card.json", card)
        overrides = ["--seeds", "3", "--points", "4", "--iterations_share", "0.005", "--experiments", "[fig5]"]
        write(tmp_path / "study", "study.json", [*overrides, "--regimes", "{printed: {}}"])
    found = killed(tmp_path, **wanted)
    at_writes = found.pop("writes")
    assert at_writes["writes"] > 100
    assert at_writes["kills"] > 100 // wanted["writes"]
    assert {kind: done["kills"] for kind, done in found.items()} == {k: n for k, n in wanted.items() if k != "writes"}


@pytest.mark.slow
@pytest.mark.real_model
def test_the_real_small_model_killed_at_random_moments(tmp_path):
    content = yaml.safe_load(Path("configs/quickstart.yaml").read_text())
    short = {"iterations": 3, "dialogues": 2, "checkpoint_every": 1}
    write(tmp_path / "train", "config.json", content | short)
    assert killed(tmp_path, train=10)["train"]["kills"] == 10
