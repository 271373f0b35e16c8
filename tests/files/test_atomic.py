"""Atomic writes of files and folders."""

import os

import pytest

from rlhf_marl.files.atomic import writing_folder


@pytest.fixture
def before(tmp_path):
    """A folder, and next to it the temporary folder of a killed process."""
    folder = tmp_path / "adapters"
    for name, content in (("adapters/old", "old"), (".adapters.tmp/.tmpx", "torn")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    return folder


def test_a_folder_takes_the_place_of_the_one_before(before):
    with writing_folder(before) as temporary:
        (temporary / "new").write_text("new")
        assert [file.name for file in before.iterdir()] == ["old"]
    assert [file.name for file in before.iterdir()] == ["new"]
    assert list(before.parent.iterdir()) == [before]


def test_a_folder_that_is_not_finished_changes_nothing(before):
    with pytest.raises(FileNotFoundError), writing_folder(before) as temporary:
        (temporary / "new").write_text((temporary / "missing").read_text())
    assert [file.name for file in before.iterdir()] == ["old"]
    assert list(before.parent.iterdir()) == [before]


def test_a_kill_between_the_moves_leaves_the_old_folder_beside(before, monkeypatch):
    """Removing it first would take its time, and a kill meanwhile would leave half of it."""
    monkeypatch.setattr("rlhf_marl.files.atomic.move", lambda *_: os._exit(0))
    if (child := os.fork()) == 0:
        with writing_folder(before) as temporary:
            (temporary / "new").write_text("new")
    os.waitpid(child, 0)
    assert [file.name for file in (before.parent / ".adapters.old").iterdir()] == ["old"]
    monkeypatch.undo()
    with writing_folder(before) as temporary:
        (temporary / "newer").write_text("newer")
    assert list(before.parent.iterdir()) == [before]


def test_a_full_disk_leaves_the_folder_of_before(before, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_marl.files.atomic.move", full)
    with pytest.raises(OSError, match="No space left"), writing_folder(before) as temporary:
        (temporary / "new").write_text("new")
    assert [file.name for file in before.iterdir()] == ["old"]
    assert list(before.parent.iterdir()) == [before]
