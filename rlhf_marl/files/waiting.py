"""Says what a long wait is for, with the time that has passed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_marl.sanitise import printable


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Context that shows `what` on stderr: with a running clock on a terminal, as one line elsewhere."""
    from rich.console import Console  # slow to import
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr, highlight=False)  # kept, should stderr be redirected during the wait
    if not console.is_terminal:
        console.print(printable(what), markup=False, soft_wrap=True)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        bar.add_task(printable(what), total=None)
        yield
