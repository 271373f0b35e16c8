"""Load a run for a command that asks its models, and say on stderr what is loaded."""

from pathlib import Path

import click

from rlhf_marl.evaluation.loaded_run import LoadedRun, load_run
from rlhf_marl.evaluation.trained_run import check_agents, check_state, open_run, reward_cards
from rlhf_marl.runs.handed_out import Choice, choice, in_words
from rlhf_marl.sanitise import printable


def load(path: Path, command: str, adapters: Choice | None, *, scorers: bool) -> LoadedRun:
    """Load a run's models; deviations from an intact run are printed.

    Args:
        command: named in error messages.
        adapters: the best or the last ones; by default the best where training was validated.
        scorers: whether to load the agents' reward models too.

    Raises:
        UsageError: not a run with agents, or models that cannot be loaded.
    """
    run, config = open_run(path, command)
    check_agents(run)
    notes: list[str] = []
    check_state(run, config, notes)
    which = choice(path, config, adapters)
    say(f"loading {in_words(path, config, which)} of {path}")
    cards = reward_cards(run, config, notes) if scorers else []
    loaded = load_run(run, config, cards, which, notes)
    for note in notes:
        say(f"note: {note}")
    return loaded


def say(line: str) -> None:
    """Print a line on stderr, with control characters escaped."""
    click.echo(printable(line), err=True)
