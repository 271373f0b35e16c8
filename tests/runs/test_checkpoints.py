"""Checkpoints: kept, best, damaged in every way, of another version, and on a full disk."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.runs.checkpoints import Checkpoints

FILES = ["state.safetensors", "state.json", "manifest.json"]


def save(checkpoints: Checkpoints, iteration: int, score: float | None = None, keep: int = 2) -> int:
    tensors = {"w": torch.full((20,), float(iteration))}
    return checkpoints.save(iteration, tensors, {"updates": 10 * iteration}, score=score, keep=keep)


@pytest.fixture
def folder(tmp_path) -> Path:
    """With checkpoints of iterations 1 and 2."""
    for iteration in (1, 2):
        save(Checkpoints(tmp_path), iteration)
    return tmp_path


def names(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("iteration_")) for path in folder.glob("iteration_*"))


def test_a_checkpoint_comes_back_as_it_was(folder):
    tensors, values = Checkpoints(folder).load()
    assert torch.equal(tensors["w"], torch.full((20,), 2.0))
    assert (values["iteration"], values["updates"]) == (2, 20)


def test_the_newest_and_the_best_are_kept(tmp_path):
    """Scores 1, 5, 5, 2, 6, nan: the earliest of ties is the best until a better one comes."""
    checkpoints = Checkpoints(tmp_path)
    kept, oldest = [], []
    for iteration, score in enumerate([1.0, 5.0, 5.0, None, 2.0, 6.0, float("nan"), 0.0, 0.0], 1):
        oldest.append(save(checkpoints, iteration, score))
        kept.append(names(tmp_path))
        best = json.loads((tmp_path / "best.json").read_text())
        assert best["folder"] in {path.name for path in tmp_path.glob("iteration_*")}
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7], [6, 7, 8], [6, 8, 9]]
    assert oldest == [1, 1, 2, 3, 4, 5, 6, 7, 8]
    assert best == {"folder": "iteration_00006", "score": 6.0}
    assert checkpoints.best()[1]["iteration"] == 6
    save(checkpoints, 10, keep=4)
    assert names(tmp_path) == [6, 8, 9, 10]


def test_a_damaged_best_gives_way_to_the_next(tmp_path, caplog):
    for iteration, score in enumerate([3.0, 5.0, 4.0], 1):
        save(Checkpoints(tmp_path), iteration, score, keep=3)
    (tmp_path / "iteration_00002" / "state.safetensors").write_bytes(b"x")
    assert Checkpoints(tmp_path).best()[1]["iteration"] == 3
    assert "iteration_00002 is damaged (state.safetensors does not match manifest.json)" in caplog.text


def test_checkpoints_are_in_the_order_of_their_numbers(folder):
    for iteration in (99_999, 100_000):
        save(Checkpoints(folder), iteration)
    assert Checkpoints(folder).load()[1]["iteration"] == 100_000


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_and_every_cut_is_noticed(folder, file, caplog):
    """And an empty, a missing and a longer file."""
    caplog.set_level(logging.CRITICAL)
    path = folder / "iteration_00002" / file
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))] + [whole + b"x", None]
    for n in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[n // 8] ^= 1 << n % 8
        damaged.append(bytes(flipped))
    for content in damaged:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        assert Checkpoints(folder).load()[1]["iteration"] == 1, content


@pytest.mark.parametrize("file", FILES)
def test_the_warning_says_which_and_why(folder, file, caplog):
    (folder / "iteration_00002" / file).unlink()
    Checkpoints(folder).load()
    assert f"checkpoint {folder / 'iteration_00002'} is damaged" in caplog.text
    assert file in caplog.text


def test_no_intact_checkpoint_is_one_error_line(folder):
    for iteration in (1, 2):
        shutil.rmtree(folder / f"iteration_{iteration:05d}")
        (folder / f"iteration_{iteration:05d}").mkdir()
    with pytest.raises(UsageError, match=r"--resume: all checkpoints in .* are damaged; start a new run"):
        Checkpoints(folder).load()


def test_another_version_is_refused_not_skipped(folder, monkeypatch):
    monkeypatch.setattr("rlhf_marl.runs.checkpoints.VERSION", 6)
    with pytest.raises(UsageError, match="iteration_00002 has version 5, this rlhf-marl reads version 6: "):
        Checkpoints(folder).load()


def test_content_is_on_the_disk_before_the_name_and_the_name_before_anything_else(folder, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append((Path(a).name, Path(b).name)), replace(a, b)))
    save(Checkpoints(folder), 3)
    beside = folder / ".iteration_00003.tmp"
    assert calls == [*(beside / name for name in sorted(FILES)), beside, (beside.name, "iteration_00003"), folder]


def test_what_is_no_checkpoint_is_left_alone(folder):
    """A user's copies are ignored, and a best.json that names a checkpoint without a score is removed."""
    shutil.copytree(folder / "iteration_00002", folder / "iteration_00002.bak")
    (folder / "iteration_00009").touch()
    (folder / "best.json").write_text("{")
    assert Checkpoints(folder).load()[1]["iteration"] == 2
    Checkpoints(folder).forget_after(0)
    assert Checkpoints(folder).tidy(1) == 0
    assert {path.name for path in folder.iterdir()} == {"iteration_00002.bak", "iteration_00009"}


def test_later_checkpoints_are_forgotten(folder):
    Checkpoints(folder).forget_after(1)
    assert names(folder) == [1]


def test_a_full_disk_keeps_what_is_there(folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    for place in (
        "runs.checkpoints.save_file",
        "files.atomic.flush",
        "files.atomic.os.replace",
        "files.atomic.os.fsync",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"rlhf_marl.{place}", full)
            with pytest.raises(RunStopped, match="iteration_00003 cannot be written: No space left on device"):
                save(Checkpoints(folder), 3)
        assert Checkpoints(folder).load()[1]["iteration"] == 2
        assert not list(folder.glob("*.tmp"))
