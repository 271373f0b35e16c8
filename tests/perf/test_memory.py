"""The process keeps what tensors free."""

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
