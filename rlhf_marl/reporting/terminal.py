"""Terminal output of training: live rewards, health warnings and a summary."""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rlhf_marl.config import Config
from rlhf_marl.runs.metrics import VALUE_CORRELATION, before_and_after, first_and_last_fifth, value_correlation
from rlhf_marl.runs.validations import ended_early, held_out_curve
from rlhf_marl.sanitise import printable
from rlhf_marl.training.health import warnings_of

Row = dict[str, Any]
_WORTH_SAYING = 10.0  # seconds


@final
class Display:
    """Progress bar with live rewards on a terminal; a line per iteration elsewhere. Use as a context manager."""

    def __init__(self, config: Config, path: Path) -> None:
        self._config, self._path = config, path
        self._log: Path | None = None
        self._began: float | None = None
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rewards]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=config.iterations, rewards="playing the first dialogues")
        self._warned: set[tuple[str, int]] = set()
        self._iterations, self._tokens = 0, 0.0
        self._held_out = ""

    def _print(self, content: str | Table, style: str = "") -> None:
        self._console.print(safe_text(content, style) if isinstance(content, str) else content, soft_wrap=True)
        if isinstance(content, str):
            self._record(content)

    def _record(self, line: str) -> None:
        """Append a line to the log file, if there is one."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {printable(line)}\n")

    def loading(self) -> None:
        config = self._config
        updates = config.iterations * config.turns // config.actor.turns_per_update
        workers = f" in {counted(config.n_workers, 'Ray worker')}" if config.n_workers else ""
        models = " and ".join(config.model_of(group[0]).name for group in config.by_model)
        self._print(
            f"{counted(len(config.agents), 'agent')}{workers} over {models}; {config.topology.graph} graph; "
            f"{counted(updates, 'update')} in {counted(config.iterations, 'iteration')} of "
            f"{counted(config.dialogues, 'dialogue')}, {counted(config.turns, 'turn')} each"
        )
        self._print(f"output in {self._path}; loading")

    def log_to(self, file: Path) -> None:
        """Also append the lines that are printed from now on to a file, and a line per iteration."""
        self._log = file

    def stopping(self) -> None:
        self._print("stopping after this iteration is finished and saved (press Ctrl-C again to stop at once)")

    def __enter__(self) -> "Display":
        self._progress.start()
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def iteration(self, iterations: int, rows: list[Row]) -> None:
        """Show one finished iteration."""
        self._iterations += 1
        self._tokens += sum(row["tokens_per_second"] * row["seconds"] for row in rows) / len(_agents(rows))
        means = ((self._shown(agent, name), fmean(_rewards(rows, agent))) for agent, name in _agents(rows))
        rewards = "reward " + "  ".join(f"{printable(name)} {value:+.2f}" for name, value in means) + self._held_out
        self._progress.update(self._task, completed=iterations, rewards=rewards)
        speed = sum(row["tokens_per_second"] for row in rows) / len(rows)
        line = f"iteration {iterations}/{self._config.iterations}  {rewards}  {speed:.0f} tokens/s"
        if self._console.is_terminal:
            self._record(line)
        else:
            self._print(line)
        left = self._config.iterations - iterations
        if self._iterations == 1 and left and self._began is not None:
            seconds = time.monotonic() - self._began
            if seconds * left > _WORTH_SAYING:
                self._print(
                    f"the first iteration took {duration(seconds)}; about {duration(seconds * left)} for the rest"
                )
        for row in rows:
            for kind, words in warnings_of(row, self._config):
                if (kind, row["agent"]) not in self._warned:
                    self._warned.add((kind, row["agent"]))
                    self._print(f"warning: {self._who(row['agent'])}: {words}", "yellow")

    def validation(self, row: Row) -> None:
        """Show a validation: a line of its own, and beside the rewards from now on."""
        self._held_out = f"  held-out team {row['team']:+.2f}"
        agents = ", ".join(f"agent {i} {mean:+.2f}" for i, mean in enumerate(row["agents"]))
        self._print(
            f"after {counted(row['iteration'], 'iteration')}, {counted(row['questions'], 'held-out question')}: "
            f"team {row['team']:+.2f} ({agents})"
        )

    def summary(self, rows: list[Row], turns: list[Row], iterations: int, validations: Sequence[Row] = ()) -> None:
        """Print rewards in the first and last fifth of the updates, the critics' quality, warnings and output paths.

        rows, turns, validations: of metrics.jsonl, dialogues.jsonl and validation.jsonl.
        """
        table = Table(title=f"{counted(iterations, 'iteration')}: mean scaled reward")
        for column in ("agent", "reward model", "first fifth", "last fifth", "change"):
            table.add_column(column, justify="left" if column in ("agent", "reward model") else "right")
        for agent, name in _agents(rows):
            first, last = first_and_last_fifth(_rewards(rows, agent))
            who = self._config.agents[agent].name or str(agent)
            table.add_row(safe_text(who), safe_text(name), f"{first:+.3f}", f"{last:+.3f}", f"{last - first:+.3f}")
        if rows:
            self._print(table)
        if (pair := before_and_after(turns)) is not None:
            self._print(self._answers(*pair))
        if validations:
            self._print(held_out_curve(validations))
        if (correlation := value_correlation(turns, self._config.discount)) is not None:
            self._print(VALUE_CORRELATION.format(*correlation))
        symptoms: dict[tuple[int, str], list[str]] = {}
        for row in rows:
            for kind, words in warnings_of(row, self._config):
                symptoms.setdefault((row["agent"], kind), []).append(words)
        for (agent, _), found in sorted(symptoms.items()):
            updates = sum(row["agent"] == agent for row in rows)
            self._print(f"warning: {self._who(agent)}: {found[-1]} (in {len(found)} of {updates} updates)", "yellow")
        if (reason := ended_early(validations, iterations)) is not None:
            self._print(f"{reason}; to continue: --resume with another --validation.patience", "yellow")
        best = self._path / "checkpoints" / "best.json"
        if best.is_file():
            checkpoint = json.loads(best.read_text("utf-8"))
            metric = f"{self._config.best_metric} {checkpoint['score']:+.3f}"
            self._print(f"best checkpoint: {checkpoint['folder']} ({metric}); its adapters: {self._path / 'best'}")
        self._print(f"run directory: {self._path}")
        if (self._path / "report.html").is_file():
            self._print(f"HTML report: {self._path / 'report.html'}")

    def _answers(self, early: Mapping[str, Any], late: Mapping[str, Any]) -> Table:
        """What everybody answered to one question, early and late in training."""
        table = Table(title=safe_text(early["prompt"]), show_lines=True)
        for column in ("", f"iteration {early['iteration'] + 1}", f"iteration {late['iteration'] + 1}"):
            table.add_column(column, overflow="fold")
        for agent, pair in enumerate(zip(early["responses"], late["responses"], strict=True)):
            table.add_row(safe_text(self._who(agent)), *(safe_text(response["text"]) for response in pair))
        table.add_row("team", safe_text(early["aggregate"]), safe_text(late["aggregate"]))
        return table

    def _who(self, agent: int) -> str:
        """`agent 0`, and its name if the config gives one."""
        name = self._config.agents[agent].name
        return f"agent {agent}" if name is None else f"agent {agent} ({name})"

    def _shown(self, agent: int, reward_model: str) -> str:
        """The agent's name if the config gives one, else its reward model's."""
        return self._config.agents[agent].name or reward_model

    def profile(self, seconds: dict[str, float]) -> None:
        """Print the wall time of each stage."""
        wall = sum(seconds.values())
        table = Table(title=f"{counted(self._iterations, 'iteration')} in {wall:.1f} s")
        for column in ("stage", "seconds per iteration", "share"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for name, value in seconds.items():
            table.add_row(name, f"{value / max(1, self._iterations):.3f}", f"{value / wall:.1%}")
        self._print(table)
        generating = self._tokens / seconds["generate"] if seconds["generate"] else 0.0
        self._print(f"agent tokens per second: {generating:.0f} while generating, {self._tokens / wall:.0f} overall")


def duration(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    """1 turn, 1,024 turns."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def safe_text(words: str, style: str = "") -> Text:
    """Plain text: no markup, control or bidi characters."""
    return Text(printable(words), style)


def _agents(rows: Sequence[Row]) -> list[tuple[int, str]]:
    return sorted({row["agent"]: row["reward_model"] for row in rows}.items())


def _rewards(rows: Sequence[Row], agent: int) -> list[float]:
    return [row["reward_scaled"] for row in rows if row["agent"] == agent]
