"""A sweep's numbers -> sweep.html."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rlhf_marl.reporting.offline import offline_page
from rlhf_marl.reporting.sweep_tables import differences, failures, lines


def sweep_page(sweep: Mapping[str, Any], name: str) -> str:
    """The page as HTML text. Links to the runs' reports are relative, so the folder can be moved."""
    speakers = list(dict.fromkeys(curve["name"] for arm in sweep["arms"] for curve in arm["curves"]))
    speakers.sort(key=lambda speaker: speaker != "team")  # the team's curve first
    curves = {
        speaker: [
            {"arm": arm["name"], **{key: curve[key] for key in ("update", "mean", "low", "high")}}
            for arm in sweep["arms"]
            for curve in arm["curves"]
            if curve["name"] == speaker
        ]
        for speaker in speakers
    }
    found = lines(sweep)
    return offline_page(
        "sweep.html.j2",
        ["charts.js", "sweep.js"],
        {"curves": curves},
        name=name,
        sweep=sweep,
        over=[f"{key} = {', '.join(map(str, values))}" for key, values in sweep["over"].items()],
        speakers=speakers,
        lines=found,
        evaluated=any(line.held_out.value != "–" or line.verdicts for line in found),
        differences=differences(sweep),
        failures=failures(sweep),
        runs=[
            (arm["name"], run["seed"], f"{quote(run['folder'])}/report.html")
            for arm in sweep["arms"]
            for run in arm["runs"]
            if run["state"] == "finished"
        ],
    )
