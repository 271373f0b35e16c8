"""Atomic writes of files and folders."""

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
