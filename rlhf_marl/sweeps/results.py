"""Run a sweep from its config to its three outputs: sweep.json, sweep.html, and a table of its runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.files.atomic import locked, write_text
from rlhf_marl.reporting.sweep_page import sweep_page
from rlhf_marl.runs.metrics import first_and_last_fifth
from rlhf_marl.sweeps.execute import execute
from rlhf_marl.sweeps.grid import Planned, finished
from rlhf_marl.sweeps.processes import on_cluster, on_this_machine
from rlhf_marl.sweeps.summary import Numbers, read_result, summarise


def run_sweep(
    runs: Sequence[Planned],
    out: Path,
    *,
    config: str,
    over: Mapping[str, Sequence[Any]],
    jobs: int | None = None,
    evaluate: bool = False,
    runtime: RuntimeConfig | None = None,
    report: Callable[[Planned, str], None] = lambda run, what: None,
) -> Numbers:
    """Train what is not finished, then write sweep.json and sweep.html into `out`; returns the former's content.

    Args:
        config: the config's name. over: the swept values by key. Both are only recorded.
        jobs: runs at a time; by default 1, or as many as the cluster has room for.
        runtime: the Ray cluster that trains the runs, and what each reserves there; None: this machine trains them.
        evaluate, report: as for `execute`.

    Raises:
        UsageError: another process is running this sweep, a finished run is damaged, or there is no such cluster.
    """
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, "--out"), ExitStack() as stack:
        if runtime is None:
            start, room = on_this_machine(jobs or 1), 1
        else:
            start, room = stack.enter_context(on_cluster(runtime, config))
        failures = execute(runs, start=start, jobs=jobs or room, evaluate=evaluate, report=report)
        numbers = summarise(runs, failures, out, config=config, over=over)
        write_text(out / "sweep.json", json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
        write_text(out / "sweep.html", sweep_page(numbers, out.resolve().name))
    return numbers


def frame(runs: Sequence[Planned]) -> pd.DataFrame:
    """One row per run and agent.

    Columns: arm, the swept keys, seed, agent, reward_model, finished, first_fifth and last_fifth (mean scaled reward
    over these updates), held_out (trained minus base), verdict, path. Numbers that a run does not have are missing.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        result = read_result(run.path) if finished(run) else None
        for agent, configured in enumerate(run.config.agents):
            row = {"arm": run.arm, **run.values, "seed": run.seed, "agent": agent}
            row |= {"reward_model": configured.reward_model, "finished": result is not None}
            row |= dict.fromkeys(("first_fifth", "last_fifth", "held_out", "verdict"))
            if result is not None:
                first, last = first_and_last_fifth(result.rewards[agent].tolist())
                row |= {"reward_model": result.models[agent], "first_fifth": first, "last_fifth": last}
                if result.held_out is not None:
                    row |= {"held_out": result.held_out[agent], "verdict": result.verdicts[agent]}
            rows.append(row | {"path": str(run.path)})
    return pd.DataFrame(rows)
