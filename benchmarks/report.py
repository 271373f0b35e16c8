"""Size of the report of a long run, and how fast a browser opens it.

python benchmarks/report.py RUN_DIR [--dialogues N] [--openings N] [--json FILE]
"""

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from playwright.sync_api import sync_playwright

from rlhf_marl.reporting.page import write_report

CURVE = "[data-chart=reward] .scatterlayer path.js-line"


def prolonged(rows: list[dict[str, Any]], iterations: int) -> list[dict[str, Any]]:
    """The rows of a run, over and over, with iterations counted on."""
    period = max(row["iteration"] for row in rows) + 1
    found = []
    for start in range(0, iterations, period):
        found += [
            row | {"iteration": row["iteration"] + start} for row in rows if row["iteration"] + start < iterations
        ]
    return found


def lengthened(row: dict[str, Any], characters: int) -> dict[str, Any]:
    """A turn with answers of so many characters: their own words, repeated."""

    def long(text: str) -> str:
        return ((text or "-") + " ") * (characters // (len(text) + 1) + 1)

    responses = [answer | {"text": long(answer["text"])[:characters]} for answer in row["responses"]]
    return row | {"responses": responses, "aggregate": long(row["aggregate"])[:characters]}


def long_run(run: Path, folder: Path, dialogues: int, characters: int) -> Path:
    """A copy of a run that looks as if it had played so many dialogues."""
    copy = Path(shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("checkpoints", "best", "answers")))
    lines = {name: (run / name).read_text("utf-8").splitlines() for name in ("metrics.jsonl", "dialogues.jsonl")}
    rows = {name: [json.loads(line) for line in found] for name, found in lines.items()}
    batch = len({(row["iteration"], row["dialogue"]) for row in rows["dialogues.jsonl"]}) // (
        max(row["iteration"] for row in rows["dialogues.jsonl"]) + 1
    )
    for name, found in rows.items():
        longer = prolonged(found, -(-dialogues // batch))
        if name == "dialogues.jsonl":
            longer = [lengthened(row, characters) for row in longer]
        (copy / name).write_text("".join(json.dumps(row) + "\n" for row in longer), "utf-8")
    return copy


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True))
@click.option("--dialogues", default=2000, show_default=True)
@click.option("--characters", default=300, show_default=True, help="Of an answer.")
@click.option("--openings", default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(run_dir: Path, dialogues: int, characters: int, openings: int, output: Path | None) -> None:
    """Lengthen RUN_DIR, write its report and open it in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise click.ClickException("no chromium is installed")
    with tempfile.TemporaryDirectory() as folder:
        run = long_run(run_dir, Path(folder), dialogues, characters)
        began = time.perf_counter()
        report = write_report([run])
        numbers = {"write_seconds": time.perf_counter() - began, "megabytes": report.stat().st_size / 1e6}
        loads, curves = [], []
        with sync_playwright() as driver:
            for _ in range(openings):
                arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
                chromium = driver.chromium.launch(executable_path=browser, args=arguments)
                page = chromium.new_page()
                began = time.perf_counter()
                page.goto(report.as_uri())
                loads.append(time.perf_counter() - began)
                page.wait_for_selector(CURVE, state="attached")
                curves.append(time.perf_counter() - began)
                chromium.close()
    for name, seconds in (("loaded", loads), ("curve_drawn", curves)):
        numbers |= {
            f"{name}.{key}": value(seconds)
            for key, value in (("median", statistics.median), ("min", min), ("max", max))
        }
    for name, number in numbers.items():
        click.echo(f"{name}: {number:.2f}")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
