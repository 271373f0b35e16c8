"""The process keeps freed tensor memory."""

import ctypes
import resource
import sys

import pytest
import torch

from rlhf_marl.perf.memory import keep_freed_memory


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc can be told to"
)
def test_freed_memory_is_used_again_without_asking_the_system():
    keep_freed_memory()
    asked = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB, freed at once
        asked.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert sum(asked[10:]) < 2**26 / resource.getpagesize(), asked  # by default once per round


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is no glibc"))
    keep_freed_memory()


def test_a_c_library_without_mallopt_stays_as_it_is(monkeypatch):
    """For example musl."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
