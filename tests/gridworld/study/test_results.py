import numpy as np
import pytest

from rlhf_marl.errors import RunStopped
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study import results
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.results import Result
from tests.gridworld.study.conftest import TINY


def test_a_flipped_bit_is_told_and_a_full_disk_stops(tmp_path, caplog, monkeypatch):
    setting = settings(load_study("configs/study.yaml", TINY), "printed", "fig2")["TD error"]
    file = tmp_path / "settings" / "x.safetensors"
    results.save(file, Result(setting, {"value": np.arange(6.0).reshape(2, 3)}, 1.5))
    assert np.array_equal(results.load(file, setting).arrays["value"], [[0, 1, 2], [3, 4, 5]])
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert results.load(file, setting) is None
    assert "x.safetensors is damaged (its numbers are not those that were written); its setting is run" in caplog.text

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_bytes", full)
    with pytest.raises(RunStopped, match="No space left on device; free some space and start the same study again"):
        results.save(file, Result(setting, {}, 1.5))


def test_the_file_of_a_setting_is_named_by_all_that_decides_its_numbers():
    name = results.fingerprint(Setting(), 0, 100, 20)
    assert name == results.fingerprint(Setting(gossip_rounds=10), 0, 100, 20)
    others = [(Setting(gossip_rounds=9), 0, 100, 20), (Setting(), 1, 100, 20), (Setting(), 0, 99, 20)]
    assert (
        len({name, results.fingerprint(Setting(), 0, 100, 21), *(results.fingerprint(*other) for other in others)}) == 5
    )


def test_a_missing_file_is_no_result(tmp_path):
    assert results.load(tmp_path / "x.safetensors", Setting()) is None
