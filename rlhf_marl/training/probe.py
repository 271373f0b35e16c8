"""How long an update takes on this machine, measured."""

import time

import torch

from rlhf_marl.config import Config
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.training.build import build
from rlhf_marl.training.loop import run_iteration

_SECONDS = 2.0


def seconds_per_update(config: Config, where: str, device: torch.device) -> float:
    """Mean wall time of an update, over whole iterations for about two seconds, after a first one that warms up.

    Loads all models. Dialogues are those of the first iterations; nothing is written.
    """
    experiment = build(config, where, device)
    updates = config.turns // config.actor.turns_per_update
    with stopwatch(device) as watch:
        run_iteration(experiment, 0, 0, watch)
        began, iterations = time.monotonic(), 0
        while iterations == 0 or time.monotonic() - began < _SECONDS:
            iterations += 1
            run_iteration(experiment, iterations, iterations * updates, watch)
        return (time.monotonic() - began) / (iterations * updates)
