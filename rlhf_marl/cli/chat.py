"""`rlhf-marl chat`: talk to a run on a terminal or over a pipe."""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from rlhf_marl.cli.loading import load, say
from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.files.atomic import write_text
from rlhf_marl.runs.handed_out import Choice
from rlhf_marl.sanitise import printable, shortened
from rlhf_marl.serving.answers import TEAM, Answerer, Sampling
from rlhf_marl.serving.conversation import Conversation, Reply, Said

_PROMPT = "you> "
_QUESTION = 28  # characters of a question in the table of scores
_HELP = {
    "/team": "ask the team: the controller merges the agents' answers",
    "/agent N": "ask agent N, from 0, in its role",
    "/base": "base and trained side by side, or no longer; the dialogue goes on with the trained answer",
    "/scores": "all answers' scores so far, with the mean of each who answered",
    "/tokens N": "token limit of answers",
    "/new": "begin a new dialogue",
    "/save FILE": "write what was said, with scores, to a new JSON file",
    "/help": "this list; //text asks a question that begins with a slash",
    "/quit": "end, as Ctrl-D does",
}


def chat(path: Path, adapters: Choice | None, sampling: Sampling, *, scores: bool) -> None:
    """Answer the lines of stdin until it ends.

    Args:
        sampling: token limit, temperature and seed.
        scores: whether the agents' reward models score the answers.

    Raises:
        UsageError: not a run with agents, or a token limit beyond the model's context.
    """
    terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    loaded = load(path, "chat", adapters, scorers=scores)
    for scorer in loaded.scorers:
        scorer.card.check_columns((), "chat (try --no-scores): what you say")
    answerer = Answerer(loaded)
    _check_limit(sampling.max_tokens, answerer, "--max-tokens")
    session = _Session(path, answerer, Conversation(answerer, loaded.scorers, sampling), loaded.config.names, terminal)
    if terminal:
        with contextlib.suppress(ImportError):  # line editing
            import readline  # noqa: F401
        say(f"{', '.join(answerer.names)}: you talk to the team; /help lists the commands")
    failed = 0
    for line in _lines(terminal):
        try:
            if not session.take(line):
                break
        except RlhfMarlError as error:
            failed += 1
            say(f"error: {error}")
        except KeyboardInterrupt:
            if not terminal:
                raise
            say("stopped; the question was not answered")
    if failed and not terminal:
        sys.exit(2)


def _lines(terminal: bool) -> Iterator[str]:
    """The lines of stdin; on a terminal with a prompt, until Ctrl-D or Ctrl-C."""
    while True:
        try:
            yield input(_PROMPT if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            click.echo(err=True)
            return


def _check_limit(max_tokens: int | None, answerer: Answerer, where: str) -> None:
    if max_tokens is not None and max_tokens >= answerer.context_length:
        raise UsageError(
            f"{where}: {max_tokens} given; the dialogue needs room too in {answerer.context_length} tokens"
        )


@final
class _Session:
    """Takes lines and prints answers. terminal: with colours, and wrapped at the terminal's width."""

    def __init__(
        self, path: Path, answerer: Answerer, conversation: Conversation, names: list[str], terminal: bool
    ) -> None:
        self._path, self._answerer, self._conversation, self._terminal = path, answerer, conversation, terminal
        self._names = {f"agent-{i}": name for i, name in enumerate(names)} | {TEAM: TEAM}
        self._noted_truncation = False

    def take(self, line: str) -> bool:
        """Answer a question or obey a command; returns whether the chat goes on.

        Raises:
            UsageError: no such command, or a wrong argument. RunStopped: the controller failed.
        """
        line = line.strip()
        if not line:
            return True
        if line.startswith("/") and not line.startswith("//"):
            return self._obey(*line.partition(" ")[::2])
        self._show(self._conversation.ask(line.removeprefix("/")))
        return True

    def _obey(self, command: str, argument: str) -> bool:
        argument, conversation = argument.strip(), self._conversation
        takes = {name.partition(" ")[0]: name for name in _HELP}
        if command not in takes:
            raise UsageError(f"{shortened(command)} is no command; choose {', '.join(_HELP)}")
        if bool(argument) != (" " in takes[command]):
            given = f", not {shortened(argument)}" if argument else ""
            raise UsageError(f"{takes[command]} is how it is written{given}")
        match command:
            case "/team":
                conversation.who = TEAM
            case "/agent":
                conversation.who = self._agent(argument)
            case "/base":
                conversation.beside_base = not conversation.beside_base
                say("base and trained side by side" if conversation.beside_base else "the trained answers alone")
            case "/scores":
                self._show_scores()
            case "/tokens":
                self._set_limit(argument)
            case "/new":
                conversation.begin_again()
                self._noted_truncation = False
            case "/save":
                self._save(Path(argument).expanduser())
            case "/help":
                for name, words in _HELP.items():
                    click.echo(f"{name:<11} {words}")
        return command != "/quit"

    def _agent(self, argument: str) -> str:
        name = f"agent-{argument}"
        if name not in self._answerer.names:
            raise UsageError(f"/agent: {shortened(argument)} given; choose 0 to {len(self._answerer.names) - 3}")
        return name

    def _set_limit(self, argument: str) -> None:
        if not (argument.isascii() and argument.isdigit() and 0 < len(argument) < 8 and int(argument)):
            raise UsageError(f"/tokens: {shortened(argument)} given; use a whole number above 0")
        _check_limit(int(argument), self._answerer, "/tokens")
        self._conversation.sampling = replace(self._conversation.sampling, max_tokens=int(argument))

    def _save(self, file: Path) -> None:
        if file.exists():
            raise UsageError(f"/save: {shortened(str(file))} exists already; choose another name")
        content: dict[str, Any] = {"run": str(self._path), "replies": self._conversation.record()}
        try:
            write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"/save: {shortened(str(file))} cannot be written: {reason}") from None
        say(f"saved {file}")

    def _show(self, reply: Reply) -> None:
        if reply.truncated and not self._noted_truncation:
            say("note: the dialogue no longer fits the model's context: its oldest messages are left out")
            self._noted_truncation = True
        for said in reply.said:
            self._print(self._who(said), bold=True, fg="cyan" if said.adapted else "yellow")
            for line in self._wrapped(said.text):
                click.echo(f"  {line}")
            if said.scores:
                shown = "  ".join(f"{name} {value:+.2f}" for name, value in said.scores.items())
                self._print(f"  [{shown}]", dim=True)
            if not said.finished:
                self._print(f"  [cut at {said.tokens} tokens; /tokens N allows more]", dim=True)
            if said.problem is not None:
                say(f"error: {said.problem}")

    def _print(self, text: str, **style: Any) -> None:
        click.echo(click.style(printable(text), **style) if self._terminal else printable(text))

    def _who(self, said: Said) -> str:
        name = self._names[said.who]
        return name if said.adapted else f"{name}, untrained"

    def _wrapped(self, text: str) -> list[str]:
        """The text's lines, inert; once indented, none of them can pass for a name, a prompt or an error."""
        lines = [printable(line.expandtabs(4)) for line in text.split("\n")]
        if not self._terminal:
            return lines
        console, width = Console(), max(shutil.get_terminal_size().columns - 2, 20)
        return [part.plain for line in lines for part in Text(line).wrap(console, width, overflow="fold") or [Text("")]]

    def _show_scores(self) -> None:
        names = self._conversation.scorers
        rows = [
            (str(number), self._who(said), said.scores, reply.question)
            for number, reply in enumerate(self._conversation.replies, 1)
            for said in reply.said
        ]
        if not rows or not names:
            raise UsageError("/scores: nothing was scored yet" if names else "/scores: --no-scores was given")
        for who in dict.fromkeys(row[1] for row in rows):
            scored = [row[2] for row in rows if row[1] == who]
            values = {name: [scores[name] for scores in scored if name in scores] for name in names}
            rows.append(("mean", who, {name: fmean(found) for name, found in values.items() if found}, ""))
        width = max(cell_len(printable(row[1])) for row in rows)
        click.echo("  ".join([" " * 4, " " * width, *names]))
        for number, who, scores, question in rows:
            cells = [
                f"{scores[name]:+.2f}".rjust(len(name)) if name in scores else "-".rjust(len(name)) for name in names
            ]
            padded = printable(who) + " " * (width - cell_len(printable(who)))
            click.echo("  ".join([f"{number:<4}", padded, *cells, printable(question[:_QUESTION])]).rstrip())
