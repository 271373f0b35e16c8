"""Runs -> one self-contained HTML page. The same files give the same bytes."""

import base64
import hashlib
import json
import logging
import math
import re
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_marl.durable import write_text
from rlhf_marl.errors import UsageError
from rlhf_marl.report.read import Run, read_run, visible
from rlhf_marl.report.tables import cross_rewards, differences, held_out
from rlhf_marl.report.topology import drawing

_log = logging.getLogger("rlhf_marl")
_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError)
_DIALOGUE_CHARACTERS = 8_000_000  # of all runs together; with plotly.js the page stays under 15 MB
_WINDOW = 5  # Figure 4
_MAX_POINTS = 400  # light points of one agent; the average is drawn in full
# An empty <style> is what plotly.js makes to add its rules through the CSSOM, which the policy does not restrict.
_EMPTY = ""
# Of the map library inside plotly.js: where an element with this id stands already, it adds no style sheet.
_OWN_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several side by side; returns the file.

    Args:
        out: default report.html, in the run or, for several runs, in the working folder.

    Raises:
        UsageError: a folder is no run directory, is named twice, or the file cannot be written.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("report: a run directory is named twice")
    runs = [read_run(path) for path in paths]
    file = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    try:
        write_text(file, render(runs))
    except OSError as error:
        raise UsageError(f"report: {str(file)!r} cannot be written: {error.strerror}") from None
    return file


def refresh_report(path: Path) -> None:
    """Write a run's report.html; whatever goes wrong is a warning, since the run itself is done and well."""
    try:
        write_report([path])
    except Exception as error:
        _log.warning("%s: report.html was not written: %s; try rlhf-marl report", path, error)


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    data, shown = _data(runs, names)
    plotly, script = _plotly(), _part("report.js")
    style = _part("report.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(plotly)} {_hash(script)}",
            f"style-src {_hash(style)} {_hash(_EMPTY)}",
            "style-src-attr 'unsafe-inline'",  # plotly.js sets the style attribute of heat maps
            "img-src data:",
            "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = Environment(
        loader=PackageLoader("rlhf_marl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template("report.html.j2").render(
        policy=policy,
        style=Markup(style),
        plotly=Markup(plotly),
        script=Markup(script),
        unused_styles=_OWN_STYLE.findall(plotly),
        data=Markup(_json(data)),
        runs=[_static(run, name, kept) for run, name, kept in zip(runs, names, shown, strict=True)],
        differences=differences([run.config for run in runs]) if len(runs) > 1 else [],
        names=names,
        version=metadata.version("rlhf-marl"),
        window=_WINDOW,
    )


def moving_average(values: Sequence[float], window: int = _WINDOW) -> list[float]:
    """Mean of each value and those before it, up to `window` of them."""
    return [math.fsum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _static(run: Run, name: str, shown: int) -> dict[str, Any]:
    """What the template shows of one run."""
    tables = cross = None
    if run.evaluation is not None:
        try:
            tables, cross = held_out(run.evaluation), cross_rewards(run.evaluation["cross_rewards"])
        except _MALFORMED:
            tables = cross = None
            run.notes.append("evaluation.json is damaged and is not shown; delete it and evaluate again")
    return {
        "name": name,
        "command": f"rlhf-marl evaluate {run.path}",
        "notes": run.notes,
        "agents": run.agents,
        "changes": [_change(values) for values in run.episodes],
        "tables": tables,
        "cross": cross,
        "health": run.health,
        "topology": drawing(run.topology),
        "graph": _described(run.config.get("topology")),
        "n_dialogues": len(run.dialogues),
        "n_shown": shown,
        "n_evaluated": len(run.evaluated),
        "config": run.config_text,
        "environment": json.dumps(run.environment, indent=2, ensure_ascii=False),
    }


def _change(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean reward of the first and the last fifth of an agent's dialogues."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    fifth = max(1, len(finite) // 5)
    first, last = (math.fsum(part) / fifth for part in (finite[:fifth], finite[-fifth:]))
    return {
        "first": f"{first:+.2f}",
        "last": f"{last:+.2f}",
        "difference": f"{last - first:+.2f}",
        "rose": last > first,
    }


def _described(topology: Any) -> str:
    if not isinstance(topology, dict):
        return ""
    return f"{topology.get('graph')} graph, {topology.get('matrix')} weights, {topology.get('gossip_rounds')} rounds"


def _data(runs: Sequence[Run], names: Sequence[str]) -> tuple[dict[str, Any], list[int]]:
    """What report.js shows, and of each run the number of training dialogues kept for its browser."""
    held = []
    for run in runs:
        total = len(json.dumps(run.dialogues, ensure_ascii=False))
        step = max(1, math.ceil(total * len(runs) / _DIALOGUE_CHARACTERS))
        held.append(run.dialogues[::step])
    content = {
        "runs": [
            {
                "name": name,
                "agents": run.agents,
                "episodes": [_curve(values) for values in run.episodes],
                "series": run.series,
                "training": dialogues,
                "evaluation": run.evaluated,
                "cross": _heat(run.evaluation),
            }
            for run, name, dialogues in zip(runs, names, held, strict=True)
        ]
    }
    return content, [len(dialogues) for dialogues in held]


def _curve(values: Sequence[float]) -> dict[str, Any]:
    """{x, y: points, thinned evenly; average}: an agent's rewards and their moving average."""
    step = max(1, math.ceil(len(values) / _MAX_POINTS))
    points = range(0, len(values), step)
    average = moving_average([value if math.isfinite(value) else 0.0 for value in values])
    return {
        "x": [i + 1 for i in points],
        "y": [round(values[i], 4) if math.isfinite(values[i]) else None for i in points],
        "average": [round(value, 4) for value in average],
    }


def _heat(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    try:
        cross = (evaluation or {})["cross_rewards"]
        return {
            "judges": [
                str(judge["name"]) + ("" if judge["trained_agents"] else " (held out)") for judge in cross["judges"]
            ],
            "rows": [str(row) for row in cross["rows"]],
            **{key: cross[key] for key in ("base", "trained", "difference", "low", "high")},
        }
    except _MALFORMED:
        return None


def _json(data: Any) -> str:
    """JSON that no HTML parser can leave, with hidden characters written out."""
    text = json.dumps(_shown(data), ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _part(name: str) -> str:
    return resources.files("rlhf_marl.report").joinpath(name).read_text("utf-8")


def _plotly() -> str:
    """plotly.js, its licence comment included, such that neither `</script` nor a carriage return stands in it."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
