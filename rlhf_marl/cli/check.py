"""`rlhf-marl check`: one screen of what a config would train, what it costs and what it needs."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
import torch
from rich.console import Console

from rlhf_marl.config import Config
from rlhf_marl.dialogue.speakers import agents_in_words
from rlhf_marl.distributed.cluster import check_installed
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.validation import read_validation
from rlhf_marl.policy.loading import default_device
from rlhf_marl.reporting.terminal import counted, duration, safe_text
from rlhf_marl.rewards import Card
from rlhf_marl.training.build import recipes_of
from rlhf_marl.training.check import Checked, check_experiment
from rlhf_marl.training.probe import seconds_per_update


def check(config: Config, where: str, *, device: str | None, probe: bool, as_json: bool) -> None:
    """Check a config and print what training it would need, as text or as JSON.

    Args:
        device: where the run would train; by default where it would train on this machine.
        probe: also load the models and measure an update.

    Raises:
        UsageError: what training would refuse.
    """
    on = default_device() if device is None else torch.device(device)
    if probe and device is not None and on.type != default_device().type:
        raise UsageError(f"check: --probe measures on this machine's {default_device().type}; leave out --device")
    if config.n_workers:
        check_installed(f"{where}: runtime.kind")
        if probe:
            raise UsageError("check: --probe measures agents in one process; leave it out with runtime.kind ray")
    judges: Sequence[Card] = ()
    if config.validation is not None:
        judges = read_validation(config, where, recipes_of(config, where)).judges
    checked = check_experiment(config, where, on, judges)
    seconds = seconds_per_update(config, where, on) if probe else None
    if as_json:
        found = checked.forecast
        numbers: dict[str, Any] = asdict(found) | {"peak": found.peak, "needs": checked.needs}
        numbers["own_models"] = [asdict(own) for own in checked.own_models]
        click.echo(json.dumps(numbers | {"seconds_per_update": seconds}, indent=1))
        return
    console = Console(highlight=False)
    for name, text in screen(checked, where, seconds):
        console.print(safe_text(f"{name:<12}{text}"), soft_wrap=True)


def screen(checked: Checked, where: str, seconds: float | None) -> list[tuple[str, str]]:
    """Lines of (name, text)."""
    config, found = checked.config, checked.forecast
    n_agents = len(config.agents)
    masked = ", masked" if config.topology.masked else ""
    parts = ", ".join(f"{part} {size_of(size)}" for part, size in found.memory.items())
    memory = f"{size_of(found.peak)} on {found.device}{_of_this_machine(found.device, found.peak)}"
    rewards = [
        f"agent {i}: {card.name}{f' ({state})' if (state := card.available()) not in ('', 'yes') else ''}"
        for i, card in enumerate(checked.cards)
    ]
    questions = len(checked.questions.conversations)
    adapters, critics = counted(n_agents, "adapter"), counted(n_agents, "critic")
    trained = f"{adapters} of {count_of(found.adapter)} and {critics} of {count_of(found.critic)}"
    dialogues = f"{counted(config.dialogues, 'dialogue')} with {counted(config.turns, 'turn')}"
    shape = f"{counted(config.iterations, 'iteration')} of {dialogues}"
    tokens = f"agents generate at most {found.generated:,} tokens and read {found.read:,}"
    lines = [
        ("config", f"{where}: everything is found"),
        ("model", f"{config.model.name}: {count_of(found.base)} parameters, {found.dtype} on {found.device}"),
        *(
            (
                "",
                f"of {agents_in_words(own.agents)} {own.name}: {count_of(own.parameters)} parameters, "
                f"{size_of(own.memory)}",
            )
            for own in checked.own_models
        ),
        ("trained", f"{trained} parameters"),
        ("rewards", "; ".join(rewards)),
        ("controller", config.controller.kind),
        ("topology", f"{config.topology.graph}, {counted(config.topology.gossip_rounds, 'gossip round')}{masked}"),
        ("questions", f"{questions:,}"),
        ("updates", f"{found.updates:,}: {shape}"),
        ("an update", f"{tokens}; the controller generates at most {found.controlled:,}"),
        ("memory", f"about {memory}"),
        ("", parts),
        ("disk", f"up to {size_of(found.run_directory)} in the run directory, and its logs"),
    ]
    if found.unknown:
        lines.append(("", f"without {', '.join(found.unknown)}, whose size is not known here"))
    if config.n_workers:
        each = size_of(found.memory.get("process", 0) + found.memory["base model"])
        more = f"each beyond the first needs about {each} more than that, and its reward models"
        over = f" over {config.model.name}" if checked.own_models else ""
        lines.append(("workers", f"{config.n_workers} on Ray; the memory is that of one process{over}, and {more}"))
    if seconds is None:
        lines.append(("time", "measured with --probe"))
    else:
        in_all = duration(seconds * found.updates)
        lines.append(("time", f"{seconds:.2f} s an update, {in_all} in all, without loading"))
    return [*lines, *(("first use", need) for need in checked.needs)]


def _of_this_machine(device: str, peak: int) -> str:
    """How much memory there is, where the device is on this machine."""
    if device == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    elif device.startswith("cuda") and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.device(device)).total_memory
    else:
        return ""
    return f" of {size_of(total)}{': MORE THAN THERE IS' if peak > total else ''}"


def size_of(size: int) -> str:
    """Bytes for people: 345 MB, 1.2 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def count_of(count: int) -> str:
    """A number of parameters for people: 134.5 M, 196.6 k."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.1f} k"
