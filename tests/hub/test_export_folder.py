"""The export folder: written atomically, replaced only if unchanged."""

import json

import pytest

from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.hub.export_folder import MARKER, check_target, read_object, writing_export


@pytest.fixture
def target(tmp_path):
    with writing_export(tmp_path / "out") as folder:
        (folder / "model.safetensors").write_bytes(b"abc")
        (folder / "model.safetensors").chmod(0o600)
    return tmp_path / "out"


def test_the_marker_has_every_files_hash(target):
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json.loads((target / MARKER).read_text()) == {"model.safetensors": abc}
    assert (target / "model.safetensors").stat().st_mode == (target / MARKER).stat().st_mode
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_unchanged_export_may_be_replaced_and_a_changed_one_not(target):
    check_target(target)
    check_target(target.parent / "new")
    (target / "model.safetensors").write_bytes(b"abd")
    with pytest.raises(UsageError, match="has changed since it was exported"):
        check_target(target)
    (target / MARKER).unlink()
    with pytest.raises(UsageError, match="is not an rlhf-marl export"):
        check_target(target)


def test_a_failure_leaves_the_export_before(target):
    with pytest.raises(RlhfMarlError, match="cannot be written: No such file"), writing_export(target) as folder:
        (folder / "half").write_bytes((folder / "missing").read_bytes())
    check_target(target)
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_object_is_needed(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UsageError, match=r"a.json: contains a list, not a JSON object"):
        read_object(tmp_path / "a.json")
