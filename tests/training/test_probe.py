"""The probe returns an update's time and leaves nothing behind."""

import torch

from rlhf_marl.config import check_config
from rlhf_marl.training import probe


def test_seconds_of_an_update(quick_content, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_SECONDS", 0.01)
    before = set(tmp_path.rglob("*"))
    found = probe.seconds_per_update(check_config(quick_content, "tiny"), "tiny", torch.device("cpu"))
    assert 0 < found < 10
    assert set(tmp_path.rglob("*")) == before
