"""`rlhf-marl evaluate`, and `rlhf_marl.evaluate` from Python."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.compare import compare_all
from rlhf_marl.evaluation.evaluate import Evaluation, Options, evaluate_run
from rlhf_marl.evaluation.show import markdown, show, show_recorded, show_side_by_side
from rlhf_marl.evaluation.source import NothingTrained, recorded
from rlhf_marl.report.page import refresh_report
from rlhf_marl.run_directory import RunDirectory


def evaluate(paths: Sequence[Path], options: Mapping[str, Any], output: Path | None, document: Path | None) -> None:
    """Evaluate runs and print them: one in full, several side by side.

    Args:
        options: of `Options`; what is None or empty keeps its default.
        output: JSON of what is printed. document: Markdown of each run's table.
    """
    chosen = Options(**{key: value for key, value in options.items() if value not in (None, ())})
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UsageError("evaluate: a run directory is named twice")
    found = [_with_progress(path, chosen) for path in paths]
    for path in paths:
        refresh_report(path)
    if len(paths) == 1:
        content = found[0].numbers
        show(content)
    else:
        compared = compare_all(names, found)
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
        try:
            found = evaluate_run(
                path,
                options,
                lambda stage, done, total: bar.update(
                    task, description=f"{path}: {stage}", completed=done, total=total
                ),
            )
        except NothingTrained:
            show_recorded(recorded(RunDirectory(path)))
            raise
    if found.reused:
        console.print(
            f"{path}: evaluation.json answers this already; delete it to evaluate again", markup=False, soft_wrap=True
        )
    return found
