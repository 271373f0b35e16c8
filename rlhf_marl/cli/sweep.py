"""`rlhf-marl sweep`: progress, the table, and the failures at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_marl.config.overrides import apply_overrides
from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.errors import RlhfMarlError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.reporting.sweep_tables import failures, show_sweep
from rlhf_marl.reporting.terminal import safe_text
from rlhf_marl.sweeps.grid import Planned, finished, parse_over, plan
from rlhf_marl.sweeps.processes import cluster_of
from rlhf_marl.sweeps.results import run_sweep


def sweep(
    config: str,
    over: Sequence[str],
    out: Path | None,
    jobs: int | None,
    runtime: Literal["local", "ray"],
    evaluate: bool,
    overrides: Sequence[str],
) -> None:
    """Run a sweep and print its table.

    Raises:
        UsageError: a mistake in the config or the options, before anything is trained.
        RlhfMarlError: some runs failed; the others are kept, and in the results.
    """
    values = parse_over(over)
    content = apply_overrides(load_yaml(find_data(config, "config")), overrides)
    out = out or Path("sweeps") / Path(config).stem
    runs = plan(content, config, values, out)
    cluster = cluster_of([r.config.runtime for r in runs], config) if runtime == "ray" else None
    numbers = shown_sweep(runs, out, config=config, over=values, jobs=jobs, evaluate=evaluate, runtime=cluster)
    show_sweep(numbers)
    for file in ("sweep.html", "sweep.json"):
        Console(highlight=False).print(safe_text(str(out / file)), soft_wrap=True)
    check_failures(numbers, out)


def check_failures(numbers: Mapping[str, Any], out: Path) -> None:
    """Raise RlhfMarlError with a line per failed run."""
    if failed := failures(numbers):
        n_runs = sum(len(arm["runs"]) for arm in numbers["arms"])
        reasons = "\n".join(f"{out / folder}: {reason}" for folder, reason in failed)
        raise RlhfMarlError(f"{len(failed)} of {n_runs} runs failed; the same command tries them again\n{reasons}")


def shown_sweep(
    runs: Sequence[Planned],
    out: Path,
    *,
    config: str,
    over: Mapping[str, Sequence[Any]],
    jobs: int | None,
    evaluate: bool = False,
    runtime: RuntimeConfig | None = None,
) -> dict[str, Any]:
    """`run_sweep` with its progress on stderr."""
    console = Console(stderr=True, highlight=False)
    done = sum(finished(run) for run in runs)
    at_once = f"{jobs or 1} at a time" if jobs or runtime is None else "as many at a time as the cluster has room for"
    console.print(
        safe_text(f"{len(runs)} runs, {done} of them finished before; output in {out}; {at_once}"), soft_wrap=True
    )
    columns = (TextColumn("runs"), MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(runs))

        def report(run: Planned, what: str) -> None:
            console.print(safe_text(f"{run.name}: {what}"), soft_wrap=True)
            if what not in ("training", "evaluating"):
                bar.advance(task)

        return run_sweep(
            runs, out, config=config, over=over, jobs=jobs, evaluate=evaluate, runtime=runtime, report=report
        )
