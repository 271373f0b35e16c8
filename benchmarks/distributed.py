"""What agents in processes of their own cost, and how far gossip carries in large teams.

python benchmarks/distributed.py [--config FILE] [--iterations N] [--only workers,scale] [--json FILE]

`workers`: five agents with the config's reward models on a ring, with runtime.kind local, and with ray and all five,
three, two or one of them in each worker; each after one iteration that warms up. `start`: seconds to load everything,
with the processes' start. `update`: median seconds of an update. `messages`: MB that all workers sent in one.
`memory`: the largest peak of a worker, or this process's. Then one agent's process is killed and the others wait for
it: seconds until that is noticed, and until the agent is back.

`scale`: one process and no models. Agents hold normal numbers and gossip with the package's graphs and Metropolis
weights. `apart`: root mean square distance to the mean of those present, as a share of what it was at first; `off`:
that of their mean to the mean at first. `to 1%`: rounds until 1% is left, from σ_2, and what an agent sends in them, in
GB: messages of MESSAGE bytes, the critic of configs/quickstart.yaml with Adam's second moment.

Then 10% of messages are lost, each in one direction: both ends agree to leave them out, or the receiver puts its own
value in their place. Then agents come and go: in each round a present one leaves with probability LEAVES, and an absent
one returns with probability RETURNS and the mean of its neighbours' values.
"""

import json
import logging
import math
import os
import resource
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from rlhf_marl.algorithm.mixing import disagreement
from rlhf_marl.algorithm.topology import MATRICES, adjacency, spectral_gap
from rlhf_marl.config import Config, load_config
from rlhf_marl.distributed.build import build_distributed
from rlhf_marl.perf.stopwatch import Stopwatch, stopwatch
from rlhf_marl.training.build import Experiment, build
from rlhf_marl.training.loop import run_iteration

CPU = torch.device("cpu")
N_AGENTS = 5
GRAPHS = ("ring", "grid", "exponential", "random")
SIZES = (8, 32, 128, 512, 1024)
ROUNDS = 100
VALUES = 16  # numbers per agent
LOST, LEAVES, RETURNS = 0.1, 0.02, 0.2
MESSAGE = 2 * 3 * 256**2 * 4


def measured(config: Config, where: str, iterations: int) -> dict[str, Any]:
    """One row of the table of layouts."""
    started = time.monotonic()
    experiment = (build if config.runtime.kind == "local" else build_distributed)(config, where, CPU)
    row: dict[str, Any] = {"workers": config.n_workers, "start": time.monotonic() - started}
    with closing(experiment), stopwatch(CPU) as watch:
        played(experiment, 0, watch)
        rows = [row for i in range(iterations) for row in played(experiment, i + 1, watch)]
        row["seconds"] = statistics.median(row["seconds"] for row in rows)
        row["gossip_bytes"] = rows[-1].get("gossip_bytes_sent", 0)
        row["bytes"] = sum(message.bytes for message in getattr(experiment.team, "messages", []))
        pids = experiment.team.processes().values() if config.n_workers else [os.getpid()]
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
    return {"noticed": times[0] - killed, "back": times[-1] - killed}


def peak(pid: int) -> int:
    """Peak memory of a process, in bytes."""
    if pid == os.getpid():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def metropolis(graph: Tensor) -> Tensor:
    build = MATRICES["metropolis_hastings"]
    assert build is not None
    return build(graph, None)


def gossiped(values: Tensor, matrix_of_round: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[tuple[float, float]]:
    """`apart` and `off` after each round.

    matrix_of_round: from the values, a round's matrix and who is present in it; may change the values of others.
    """
    start, first = disagreement(values), values.mean(0)
    found = []
    for _ in range(ROUNDS):
        matrix, present = matrix_of_round(values)
        values = matrix @ values
        here = values[present]
        off = (here.mean(0) - first).square().sum().sqrt()
        found.append((float(disagreement(here) / start), float(off / start)))
    return found


def scale(name: str, n: int) -> dict[str, Any]:
    """A row of the table of large teams."""
    generator = torch.Generator().manual_seed(n)
    graph = adjacency(name, n, edge_probability=min(0.5, 2 * math.log(n) / n), generator=generator)
    matrix, everyone = metropolis(graph), torch.ones(n, dtype=torch.bool)
    values = torch.randn(n, VALUES, dtype=torch.float64, generator=generator)

    def drawn(probability: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < probability

    def agreed(values: Tensor) -> tuple[Tensor, Tensor]:
        arrives = ~drawn(LOST, n, n)
        kept = matrix * (arrives & arrives.mT)
        return kept.fill_diagonal_(0.0) + torch.diag(1 - kept.sum(-1)), everyone

    def replaced(values: Tensor) -> tuple[Tensor, Tensor]:
        kept = matrix * ~drawn(LOST, n, n)
        return kept.fill_diagonal_(0.0) + torch.diag(1 - kept.sum(-1)), everyone

    present = everyone.clone()

    def coming_and_going(values: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal present
        back = ~present & drawn(RETURNS, n)
        near = (graph & present).to(values)
        back &= near.any(-1)
        values[back] = (near[back] @ values) / near[back].sum(-1, keepdim=True)
        present = present & ~drawn(LEAVES, n) | back
        return metropolis(graph & present & present.unsqueeze(-1)), present

    sigma = 1 - spectral_gap(matrix)
    enough = 1 if sigma < 0.01 else math.ceil(math.log(0.01) / math.log(sigma))
    neighbours = float(graph.sum() / n)
    row: dict[str, Any] = {"graph": name, "n": n, "neighbours": neighbours, "enough": enough}
    row |= {"sent": neighbours * enough * MESSAGE}
    cases = {"calm": lambda values: (matrix, everyone), "agreed": agreed, "replaced": replaced}
    cases |= {"going": coming_and_going}
    return row | {case: gossiped(values.clone(), of_round) for case, of_round in cases.items()}


def workers(file: str, iterations: int) -> list[dict[str, Any]]:
    """Measure and print the layouts."""
    config = load_config(file)
    agents = [config.agents[i % len(config.agents)].model_copy(update={"name": None}) for i in range(N_AGENTS)]
    topology = config.topology.model_copy(update={"graph": "ring", "edges": None})
    config = config.model_copy(update={"agents": agents, "topology": topology})
    layouts: list[dict[str, Any]] = [{"kind": "local"}]
    for each in (5, 3, 2, 1):
        threads = max(1, (os.cpu_count() or 1) // math.ceil(N_AGENTS / each))
        layout = {"kind": "ray", "agents_per_worker": each, "cpus_per_worker": threads}
        layouts.append(layout | {"lost": "wait" if each == 1 else "stop"})
    rows = []
    click.echo("workers   start s   update s   gossip MB   messages MB   memory MB")
    for layout in layouts:
        runtime = config.runtime.model_copy(update=layout)
        given = config.model_copy(update={"runtime": runtime})
        # A process of its own, whose peak memory is the layout's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows.append(row := pool.submit(measured, given, file, iterations).result())
        sizes = [row[key] / 1e6 for key in ("gossip_bytes", "bytes", "memory")]
        click.echo(
            f"{row['workers'] or 'local':>7}{row['start']:>10.1f}{row['seconds']:>11.3f}"
            f"{sizes[0]:>12.2f}{sizes[1]:>14.2f}{sizes[2]:>12.0f}"
        )
    noticed, back = (rows[-1][key] for key in ("noticed", "back"))
    click.echo(f"a killed agent is noticed after {noticed:.1f} s and back after {back:.1f} s")
    return rows


def scales() -> list[dict[str, Any]]:
    """Simulate and print the large teams."""
    click.echo(f"{'':>34}{'calm: apart':>18}{'to 1%':>16}{'agreed':>10}{'replaced':>18}{'come and go':>18}")
    click.echo(
        f"{'graph':<12}{'agents':>10}{'neighbours':>12}{'20 rounds':>10}{'100':>8}{'rounds':>8}{'GB':>8}{'20':>10}"
        f"{'20':>10}{'off 100':>8}{'20':>10}{'off 100':>8}"
    )
    rows = []
    for name in GRAPHS:
        for n in SIZES:
            rows.append(row := scale(name, n))
            apart = {case: row[case][19][0] for case in ("calm", "agreed", "replaced", "going")}
            click.echo(
                f"{name:<12}{n:>10}{row['neighbours']:>12.1f}{apart['calm']:>10.2g}{row['calm'][-1][0]:>8.1g}"
                f"{row['enough']:>8}{row['sent'] / 1e9:>8.2f}{apart['agreed']:>10.2g}{apart['replaced']:>10.2g}"
                f"{row['replaced'][-1][1]:>8.1g}{apart['going']:>10.2g}{row['going'][-1][1]:>8.1g}"
            )
    return rows


@click.command(help=__doc__)
@click.option("--config", "file", default="configs/quickstart.yaml", help="A config without names of agents.")
@click.option("--iterations", default=2, help="Measured iterations of each layout.")
@click.option("--only", default="workers,scale", help="Parts to run.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the rows here.")
def main(file: str, iterations: int, only: str, output: Path | None) -> None:
    parts = {"workers": lambda: workers(file, iterations), "scale": scales}
    if unknown := set(only.split(",")) - parts.keys():
        raise click.UsageError(f"--only: {sorted(unknown)[0]!r} is no part; choose from {', '.join(parts)}")
    rows = {part: run() for part, run in parts.items() if part in only.split(",")}
    if output is not None:
        output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
