"""Data files: the user's first, then the shipped ones."""

from pathlib import Path

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT, cache_dir, expanded, find_data


def test_the_working_folder_comes_before_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data("configs/quickstart.yaml", "x") == (DATA_ROOT / "configs" / "quickstart.yaml").resolve()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").touch()
    assert find_data("configs/quickstart.yaml", "x") == tmp_path / "configs" / "quickstart.yaml"


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(UsageError, match=r"^x: 'configs/gone.yaml' does not exist; shipped: configs/.*quickstart.yaml"):
        find_data("configs/gone.yaml", "x")
    with pytest.raises(UsageError, match=r"^x: 'a\\x00' does not exist$"):
        find_data("a\0", "x")


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.delenv("RLHF_MARL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_dir() == Path("/c/rlhf_marl")
    monkeypatch.setenv("RLHF_MARL_CACHE", "/d")
    assert cache_dir() == Path("/d")
    monkeypatch.setenv("HOME", "/h")
    assert expanded("~/x") == Path("/h/x")
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
