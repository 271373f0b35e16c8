"""Run records -> one self-contained HTML page, byte for byte reproducible."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import Evaluation
from rlhf_marl.evaluation.labels import LABELS
from rlhf_marl.files.atomic import write_text
from rlhf_marl.reporting.offline import embedded, offline_page
from rlhf_marl.reporting.run_record import MALFORMED, RunRecord, read_run
from rlhf_marl.reporting.tables import compared, cross_rewards, differences, held_out
from rlhf_marl.reporting.topology import drawing
from rlhf_marl.runs.metrics import first_and_last_fifth
from rlhf_marl.runs.validations import held_out_curve

_log = logging.getLogger("rlhf_marl")
_DIALOGUE_BYTES = 10_000_000  # in the page, of all runs together: keeps the page under 15 MB
_WINDOW = 5  # Figure 4
_RELOAD = 15  # seconds, of the page of a run that is under way
_MAX_POINTS = 400  # single rewards drawn per agent; the moving average is drawn in full


def write_report(paths: Sequence[Path], out: Path | None = None, *, under_way: bool = False) -> Path:
    """Write the report of one run, or of several side by side; returns the file.

    Args:
        out: by default report.html, in the run or, for several runs, in the working folder.
        under_way: the runs go on, so the page reloads itself.

    Raises:
        UsageError: a folder is not a run directory or is named twice, or the file cannot be written.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("report: a run directory is named twice")
    runs = [read_run(path, under_way=under_way) for path in paths]
    file = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    try:
        write_text(file, render(runs))
    except OSError as error:
        raise UsageError(f"report: {str(file)!r} cannot be written: {error.strerror}") from None
    return file


def refresh_report(path: Path, *, under_way: bool = False) -> None:
    """Write a run's report.html; a failure is only a warning, since the run itself is unaffected."""
    try:
        write_report([path], under_way=under_way)
    except Exception as error:
        _log.warning("%s: report.html was not written: %s; try rlhf-marl report", path, error)


@contextmanager
def live_report(path: Path, every: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function of the finished iterations that writes the page of a run under way, every `every` iterations.

    After an error in the block, the page is written once more: it no longer reloads itself. None: nothing is written.
    """

    def refresh(iterations: int) -> None:
        if every is not None and iterations % every == 0:
            refresh_report(path, under_way=True)

    try:
        yield refresh
    except BaseException:
        if every is not None:
            refresh_report(path)
        raise


def render(runs: Sequence[RunRecord]) -> str:
    """The page as HTML text."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    data, shown = _data(runs, names)
    return offline_page(
        "report.html.j2",
        ["charts.js", "report.js"],
        data,
        runs=[_static(run, name, kept) for run, name, kept in zip(runs, names, shown, strict=True)],
        compared=_compared(runs, names),
        labels=[label.long for label in LABELS.values()],
        differences=differences([run.config for run in runs]) if len(runs) > 1 else [],
        names=names,
        window=_WINDOW,
    )


def moving_average(values: Sequence[float], window: int = _WINDOW) -> list[float | None]:
    """Moving average over `window` values that skips non-finite ones; None where all are."""
    averages: list[float | None] = []
    for i in range(len(values)):
        known = [value for value in values[max(0, i - window + 1) : i + 1] if math.isfinite(value)]
        averages.append(sum(known) / len(known) if known else None)
    return averages


def team_rewards(episodes: Sequence[Sequence[float]]) -> list[float]:
    """Each dialogue's mean over the agents with a finite reward; NaN where none has one.

    episodes: [agent][dialogue].
    """
    finite = [[value for value in values if math.isfinite(value)] for values in zip(*episodes, strict=True)]
    return [fmean(values) if values else math.nan for values in finite]


def _compared(runs: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """Comparisons of the evaluated runs with the first one."""
    if len(runs) < 2 or runs[0].evaluation is None:
        return []
    from rlhf_marl.evaluation.compare import compare  # imports scipy, which a single run does not need

    found = []
    first = runs[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        if run.evaluation is None:
            continue
        try:
            comparison = compare(_evaluation(first), _evaluation(run))
            found.append({"name": name, "reference": names[0], **compared(comparison)})
        except MALFORMED:
            run.notes.append("evaluation_dialogues.jsonl is incomplete: the runs' answers are not compared")
    return found


def _evaluation(run: RunRecord) -> Evaluation:
    return Evaluation(run.evaluation or {}, run.answers, reused=True)


def _static(run: RunRecord, name: str, shown: tuple[int, int]) -> dict[str, Any]:
    """Template variables of one run."""
    evaluation = run.evaluation
    training, evaluated = shown
    return {
        "name": name,
        "command": f"rlhf-marl evaluate {run.path}",
        "notes": run.notes,
        "under_way": run.under_way,
        "agents": run.agents,
        "answered": run.answered,
        "changes": [_change(values) for values in run.episodes],
        "tables": held_out(evaluation) if evaluation else None,
        "cross": cross_rewards(evaluation["cross_rewards"]) if evaluation else None,
        "health": run.health,
        "critics": run.critics,
        "held_out": held_out_curve(run.validations) if run.validations else "",
        "used": run.used,
        "topology": drawing(run.topology),
        "graph": _described(run.config.get("topology")),
        "n_dialogues": len(run.dialogues),
        "n_shown": training,
        "n_evaluated": len(run.evaluated),
        "n_evaluated_shown": evaluated,
        "config": run.config_text,
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False),
    }


def _change(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean reward of the first and the last fifth of an agent's dialogues."""
    finite = [value for value in values if math.isfinite(value)]
    return first_and_last_fifth(finite) if finite else None


def _described(topology: Any) -> str:
    if not isinstance(topology, dict):
        return ""
    return f"{topology.get('graph')} graph, {topology.get('matrix')} weights, {topology.get('gossip_rounds')} rounds"


def _data(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The data for report.js, and per run the numbers of training and evaluated dialogues in it."""
    # Evaluated dialogues are usually few, so they come first; training dialogues get the rest of the budget.
    share = _DIALOGUE_BYTES // len(runs)
    held = []
    for run in runs:
        evaluated, size = _within(share // 2, run.evaluated)
        training, _ = _within(share - size, run.dialogues)
        held.append((training, evaluated))
    content = {
        "reload": _RELOAD if any(run.under_way for run in runs) else None,
        "runs": [
            {
                "name": name,
                "agents": run.agents,
                "episodes": [_curve(values) for values in run.episodes],
                "team": _rounded(moving_average(team_rewards(run.episodes))),
                "held_out": _held_out(run),
                "series": run.series,
                "training": training,
                "evaluation": evaluated,
                "cross": _heat(run.evaluation["cross_rewards"]) if run.evaluation else None,
            }
            for run, name, (training, evaluated) in zip(runs, names, held, strict=True)
        ],
    }
    return content, [(len(training), len(evaluated)) for training, evaluated in held]


def _within(budget: int, dialogues: Sequence[dict[str, Any]]) -> tuple[Sequence[dict[str, Any]], int]:
    """(every k-th dialogue, their bytes in the page), with the smallest k that fits `budget` bytes."""
    sizes = [len(embedded(dialogue).encode()) + 1 for dialogue in dialogues]
    step = max(1, math.ceil(sum(sizes) / max(budget, 1)))
    while (size := sum(sizes[::step])) > budget and step < len(sizes):
        step += 1
    return (dialogues[::step], size) if size <= budget else ([], 0)


def _curve(values: Sequence[float]) -> dict[str, Any]:
    """{x, y: points, thinned evenly; average}: an agent's rewards and their moving average."""
    step = max(1, math.ceil(len(values) / _MAX_POINTS))
    points = range(0, len(values), step)
    return {
        "x": [i + 1 for i in points],
        "y": [round(values[i], 4) if math.isfinite(values[i]) else None for i in points],
        "average": _rounded(moving_average(values)),
    }


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is None else round(value, 4) for value in values]


def _held_out(run: RunRecord) -> dict[str, Any]:
    """{x: finished dialogues, y: the team's score by the validation's judges}."""
    dialogues = run.config.get("dialogues")
    step = dialogues if isinstance(dialogues, int) else 1
    return {
        "x": [row["iteration"] * step for row in run.validations],
        "y": [row["team"] for row in run.validations],
    }


def _heat(cross: dict[str, Any]) -> dict[str, Any]:
    return {
        "judges": [judge["name"] + ("" if judge["trained_agents"] else " (held out)") for judge in cross["judges"]],
        **{key: cross[key] for key in ("rows", "base", "trained", "difference", "low", "high")},
    }
