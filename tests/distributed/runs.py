"""Trains with workers, and lets something happen before a method of the team is called."""

import os
import signal
from itertools import count
from threading import Timer
from types import SimpleNamespace

import rlhf_marl
from rlhf_marl.distributed.build import build_distributed


def train(content, path, before=None, **options):
    """Train, with `before(team, method, count)` called before each of the team's methods; returns run and team.

    The team's `all_messages` are those of all updates.
    """
    kept = SimpleNamespace()

    def builder(config, name, device, journal):
        experiment = build_distributed(config, name, device, journal)
        kept.team = team = experiment.team
        team.pids, team.all_messages = team.processes(), []
        learn = team.learn

        def recorded(turns):
            rows = learn(turns)
            team.all_messages += team.messages
            return rows

        team.learn = recorded
        if before is not None:
            for method in ("respond", "score", "learn", "write_state"):
                wrap(team, method, before)
            object.__setattr__(experiment.player, "respond", team.respond)
        return experiment

    run = rlhf_marl.train(content, run_dir=path, builder=builder, **options)
    return run, kept.team


def wrap(team, method, before):
    original, counts = getattr(team, method), count()

    def wrapped(*arguments):
        before(team, method, next(counts))
        return original(*arguments)

    setattr(team, method, wrapped)


def kill(method, count, agent=1):
    """SIGKILL before the count-th call of a method, or, where agents exchange messages, while the others wait."""

    def before(team, called, counted):
        if (called, counted) == (method, count):
            pid = team.pids[agent]
            if method == "learn":
                os.kill(pid, signal.SIGSTOP)
                Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
            else:
                os.kill(pid, signal.SIGKILL)

    return before
