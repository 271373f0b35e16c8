"""Checkpoints that survive damage, full disks and a second process."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlhf_marl
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.run_directory import RunDirectory, read_jsonl


@pytest.fixture
def run(tiny_config, tmp_path) -> RunDirectory:
    """A run with checkpoints of iterations 1 and 2."""
    run = RunDirectory.create(tmp_path / "run", tiny_config, [])
    for iteration in (1, 2):
        run.save_checkpoint(iteration, {"w": torch.full((100,), float(iteration))}, {"updates": 10 * iteration})
    return run


def newest(run: RunDirectory) -> Path:
    return run.path / "checkpoints" / "iteration_00002"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_a_checkpoint_comes_back_as_it_was(run):
    tensors, values = run.load_checkpoint()
    assert torch.equal(tensors["w"], torch.full((100,), 2.0))
    assert values == {"iteration": 2, "updates": 20}
    run.save_checkpoint(3, {"w": torch.zeros(1)}, {"updates": 30})
    assert sorted(path.name for path in newest(run).parent.iterdir()) == ["iteration_00002", "iteration_00003"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, file, damage, caplog):
    damage(newest(run) / file)
    with caplog.at_level(logging.WARNING):
        tensors, values = run.load_checkpoint()
    assert values["iteration"] == 1
    assert torch.equal(tensors["w"], torch.ones(100))
    assert f"checkpoint {newest(run)} is damaged" in caplog.text


def test_checkpoints_are_in_the_order_of_their_numbers(run):
    for iteration in (99_999, 100_000):
        run.save_checkpoint(iteration, {"w": torch.zeros(1)}, {"updates": iteration})
    assert run.load_checkpoint()[1]["iteration"] == 100_000


def test_what_a_run_left_that_died_at_its_beginning_is_no_run(tmp_path, tiny_config):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "environment.json").touch()
    RunDirectory.create(tmp_path / "run", tiny_config, [])
    with pytest.raises(UsageError, match="already exists"):
        RunDirectory.check_free(tmp_path / "run")


def test_a_changed_reward_card_is_refused_with_the_difference(tiny_content, tmp_path):
    rlhf_marl.train(tiny_content | {"iterations": 1}, run_dir=tmp_path / "run")
    card = Path(tiny_content["agents"][1]["reward_model"])
    card.write_text(card.read_text().replace("scale: 1.0", "scale: 2.0"))
    with pytest.raises(UsageError, match=r"was started with reward model 1.scale = 1.0, now it is 2.0; use a new run"):
        rlhf_marl.train(tiny_content, run_dir=tmp_path / "run", resume=True)


def test_no_whole_checkpoint_is_one_line(run):
    for folder in newest(run).parent.iterdir():
        flip(folder / "state.safetensors")
    with pytest.raises(UsageError, match=r"--resume: all checkpoints in .* are damaged; start a new run"):
        run.load_checkpoint()


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(run, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunStopped, match="iteration_00003 cannot be written: No space left on device; make room"):
        run.save_checkpoint(3, {"w": torch.zeros(100)}, {"updates": 30})
    monkeypatch.undo()
    assert run.load_checkpoint()[1]["iteration"] == 2
    assert not list(newest(run).parent.glob("*.tmp"))
    with pytest.raises(RunStopped, match=r"nowhere/metrics.jsonl cannot be written: No such file"):
        run.append(run.path / "nowhere" / "metrics.jsonl", [{}])


def test_a_run_resumed_past_a_damaged_checkpoint_equals_the_uninterrupted_one(tiny_content, tmp_path, caplog):
    content = tiny_content | {"iterations": 3}
    whole = rlhf_marl.train(content, run_dir=tmp_path / "whole")
    rlhf_marl.train(content | {"iterations": 2}, run_dir=tmp_path / "run")
    flip(newest(RunDirectory(tmp_path / "run")) / "state.safetensors")
    resumed = rlhf_marl.train(content, run_dir=tmp_path / "run", resume=True)
    assert "is damaged" in caplog.text
    for name in ("critics.safetensors", "adapters/agent_0/adapter_model.safetensors", "dialogues.jsonl"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert len(read_jsonl(resumed.path / "metrics.jsonl")) == len(read_jsonl(whole.path / "metrics.jsonl"))


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(run, tiny_config):
    code = (
        "import sys; from pathlib import Path; from rlhf_marl.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked():\n    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(UsageError, match="is being written by another process"):
        RunDirectory.resume(run.path, tiny_config)
    other.kill()
    other.communicate()
    RunDirectory.resume(run.path, tiny_config)
