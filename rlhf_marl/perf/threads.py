"""How OpenMP's threads wait for each other."""

import os


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep soon while they wait. Call before torch is imported.

    A decode step has hundreds of short parallel regions. By default a waiting thread spins for milliseconds. Where
    another process is busy, that takes the core from the thread it waits for. What the user has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"  # a few microseconds
