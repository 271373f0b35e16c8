import sys

import numpy as np
import pytest

from rlhf_marl.cli import main
from rlhf_marl.gridworld.study.results import Result

TINY = ["--seeds", "3", "--points", "4", "--iterations_share", "0.005"]
FEW = [*TINY, "--experiments", "[fig2, slow_graph, centralised, rate]"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs `rlhf-marl study` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhf-marl", "study", "configs/study.yaml", *arguments])
        main()

    return run


def made_up(setting, value):
    seeds, n_points = value.shape
    arrays = {
        "value": value,
        "power": np.tile(np.eye(setting.n_agents), (seeds, 1, 1)),
        "points": np.arange(1, n_points + 1) * 100.0,
        "eta": np.full(seeds, 0.1),
    }
    baseline = {"random": -8.0, "start": -8.0, "constant": -7.0, "optimum": -2.0, "bound": -1.5}
    arrays |= {"reward": value, **{name: np.full(seeds, level) for name, level in baseline.items()}}
    for name in ("skipped", "dead", "dead_actors"):
        arrays[name] = np.zeros(value.shape)
    for name in ("positive", "entropy", "critic_value"):
        arrays[name] = np.full(value.shape, 0.5)
    return Result(setting, arrays | {"consensus": np.full((seeds, 31), 0.01)}, 1.0)
