"""What agents in processes of their own cost: seconds and bytes per update against all in one process.

python benchmarks/distributed.py [--config FILE] [--iterations N] [--json FILE]

The same config with runtime.kind local, and with ray and all, two or one of the agents in each worker; each after one
iteration that warms up. `start`: seconds to load everything, with the processes' start. `memory`: the largest peak of
a worker, or this process's. Then one agent's process is killed and the others wait for it: seconds until that is
noticed, and until the agent is back.
"""

import json
import logging
import os
import resource
import signal
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch

from rlhf_marl.config import Config, load_config
from rlhf_marl.distributed.build import build_distributed
from rlhf_marl.perf.stopwatch import Stopwatch, stopwatch
from rlhf_marl.training.build import Experiment, build
from rlhf_marl.training.loop import run_iteration

CPU = torch.device("cpu")


def measured(config: Config, where: str, iterations: int) -> dict[str, Any]:
    """One row of the table."""
    started = time.monotonic()
    local = config.runtime.kind == "local"
    experiment = (build if local else build_distributed)(config, where, CPU)
    row: dict[str, Any] = {"workers": config.n_workers, "start": time.monotonic() - started}
    with closing(experiment), stopwatch(CPU) as watch:
        run_iteration(experiment, 0, 0, watch)
        rows = [row for i in range(iterations) for row in played(experiment, i + 1, watch)]
        row["seconds"] = statistics.median(row["seconds"] for row in rows)
        row["gossip_bytes"] = rows[-1].get("gossip_bytes_sent", 0)
        row["bytes"] = 0 if local else sum(message.bytes for message in experiment.team.messages)
        pids = [os.getpid()] if local else experiment.team.processes().values()
        row["memory"] = max(map(peak, pids))
        if config.runtime.lost == "wait":
            row |= lost(experiment, iterations + 1, watch)
    return row


def played(experiment: Experiment, iteration: int, watch: Stopwatch) -> list[dict[str, Any]]:
    updates = experiment.config.turns // experiment.config.actor.turns_per_update
    experiment.journal.begin(iteration)
    return run_iteration(experiment, iteration, iteration * updates, watch)[1]


def lost(experiment: Experiment, iteration: int, watch: Stopwatch) -> dict[str, float]:
    """Kill the last agent's process and play an iteration."""
    times: list[float] = []

    class Clock(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            times.append(time.monotonic())

    clock = Clock(logging.WARNING)
    logging.getLogger("rlhf_marl").addHandler(clock)
    os.kill(list(experiment.team.processes().values())[-1], signal.SIGKILL)
    killed = time.monotonic()
    played(experiment, iteration, watch)
    logging.getLogger("rlhf_marl").removeHandler(clock)
    return {"noticed": times[0] - killed, "back": times[1] - killed}


def peak(pid: int) -> int:
    """Peak memory of a process, in bytes."""
    if pid == os.getpid():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@click.command(help=__doc__)
@click.option("--config", "file", default="configs/quickstart.yaml", help="A config with three agents.")
@click.option("--iterations", default=3, help="Measured iterations of each layout.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the rows here.")
def main(file: str, iterations: int, output: Path | None) -> None:
    config = load_config(file)
    layouts: list[dict[str, Any]] = [{"kind": "local"}]
    for each in sorted({len(config.agents), 2, 1}, reverse=True):
        layouts.append({"kind": "ray", "agents_per_worker": each, "lost": "wait" if each == 1 else "stop"})
    rows = []
    click.echo("workers   start s   update s   gossip MB   messages MB   memory MB")
    for layout in layouts:
        runtime = config.runtime.model_copy(update=layout)
        rows.append(row := measured(config.model_copy(update={"runtime": runtime}), file, iterations))
        sizes = [row[key] / 1e6 for key in ("gossip_bytes", "bytes", "memory")]
        click.echo(
            f"{row['workers'] or 'local':>7}{row['start']:>10.1f}{row['seconds']:>11.3f}"
            f"{sizes[0]:>12.2f}{sizes[1]:>14.2f}{sizes[2]:>12.0f}"
        )
    if "back" in rows[-1]:
        click.echo(
            f"a killed agent is noticed after {rows[-1]['noticed']:.1f} s and back after {rows[-1]['back']:.1f} s"
        )
    if output is not None:
        output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
