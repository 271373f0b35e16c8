"""`rlhf-marl runs`: a line per run, and one per verdict."""

import json
from pathlib import Path

import click

from rlhf_marl.reporting.run_list import list_runs
from rlhf_marl.sanitise import printable


def runs(folder: Path, *, as_json: bool) -> None:
    """Print the runs in a folder, as text or as JSON. Raises UsageError if there is no such folder."""
    found = list_runs(folder)
    if as_json:
        click.echo(json.dumps([run._asdict() for run in found], indent=1))
        return
    if not found:
        click.echo(printable(f"{folder}: no runs; start one with rlhf-marl train"), err=True)
    width = max((len(printable(run.path)) for run in found), default=0)
    for run in found:
        reward = "" if run.reward is None else f"reward {run.reward:+.2f}"
        of = "?" if run.of is None else run.of
        click.echo(f"{printable(run.path):<{width}}  {run.state:<11}  {run.iterations}/{of}  {reward}".rstrip())
        for agent, verdict in enumerate(run.verdicts):
            click.echo(printable(f"    agent {agent}: {verdict}"))
