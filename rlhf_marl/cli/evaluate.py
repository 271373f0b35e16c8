"""`rlhf-marl evaluate`: progress, tables, files, and the refreshed report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.evaluation.compare import compare
from rlhf_marl.evaluation.evaluate import Options, check_options, check_run, evaluate_run
from rlhf_marl.evaluation.files import Evaluation
from rlhf_marl.evaluation.trained_run import OnlyRecorded, recorded
from rlhf_marl.reporting.evaluation_tables import markdown, show, show_recorded, show_side_by_side
from rlhf_marl.reporting.page import refresh_report
from rlhf_marl.runs.directory import RunDirectory


def evaluate(paths: Sequence[Path], options: Mapping[str, Any], output: Path | None, document: Path | None) -> None:
    """Evaluate runs and print the results: one run in full, several side by side.

    Args:
        options: fields of `Options`; None or empty keeps the default.
        output: file for the printed numbers as JSON. document: file for each run's table as Markdown.

    Raises:
        RlhfMarlError: a run cannot be evaluated; the results of those before it are printed and written first.
    """
    chosen = check_options({key: value for key, value in options.items() if value not in (None, ())})
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("evaluate: a run directory is named twice")
    found: list[Evaluation] = []
    try:
        for path in paths:  # before minutes of work on the others
            check_run(path)
        for path in paths:
            found.append(_with_progress(path, chosen))
            refresh_report(path)
    except RlhfMarlError as error:
        if found:
            _publish(names[: len(found)], found, output, document)
        if isinstance(error, OnlyRecorded):
            show_recorded(recorded(RunDirectory(path)))
        raise
    _publish(names, found, output, document)


def _publish(names: Sequence[str], found: Sequence[Evaluation], output: Path | None, document: Path | None) -> None:
    """Print the evaluations, and write the requested files."""
    if len(found) == 1:
        content = found[0].numbers
        show(content)
    else:
        compared = {name: compare(found[0], other) for name, other in zip(names[1:], found[1:], strict=True)}
        show_side_by_side(names, [evaluation.numbers for evaluation in found], compared)
        content = {
            "runs": {name: evaluation.numbers for name, evaluation in zip(names, found, strict=True)},
            "reference": names[0],
            "compared_with_reference": compared,
        }
    if document is not None:
        tables = [f"## {name}\n\n{markdown(run.numbers)}" for name, run in zip(names, found, strict=True)]
        document.write_text("\n".join(tables), "utf-8")
    if output is not None:
        output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _with_progress(path: Path, options: Options) -> Evaluation:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{path}: loading", total=None)
        found = evaluate_run(
            path,
            options,
            lambda stage, done, total: bar.update(task, description=f"{path}: {stage}", completed=done, total=total),
        )
    if found.reused:
        console.print(f"{path}: reusing evaluation.json; delete it to evaluate again", markup=False, soft_wrap=True)
    return found
