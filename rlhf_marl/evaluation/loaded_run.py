"""A trained run's models in memory: what an evaluation, a server and a chat ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from rlhf_marl.config import Config
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.controller import Controller
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.judges import Scorer, own_scorers
from rlhf_marl.evaluation.trained_run import load_agents
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.policy.loading import default_device
from rlhf_marl.rewards import Card
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.handed_out import Choice
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.training.build import Agents, build_agents, build_reward_models


@final
@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A run's models.

    Attributes:
        agents: the base model with the trained adapters.
        scorers: the distinct reward models of the cards.
        source: where the adapters come from.
    """

    config: Config
    agents: Agents
    controller: Controller
    scorers: Sequence[Scorer]
    source: str


def load_run(run: RunDirectory, config: Config, cards: Sequence[Card], which: Choice, notes: list[str]) -> LoadedRun:
    """Load a run's models; adds a line to `notes` for every deviation from an intact run.

    Args:
        config: the run's.
        cards: reward models to load, one per agent; or none.
        which: the best or the last adapters.

    Raises:
        UsageError: a model or a reward model that cannot be loaded; OnlyRecorded: no agents.
    """
    where, device = f"{run.path}/config.yaml", default_device()
    if own := [i for i in range(len(config.agents)) if config.has_own_model(i)]:
        raise UsageError(
            f"{where}: agents.{own[0]}.model: agents with base models of their own cannot be loaded together in one "
            f"process; `rlhf-marl export {run.path} --agent {own[0]} --to FOLDER` writes one that runs alone"
        )
    with fits_into_memory(where):
        prepared = prepare_controller(config.controller, config.names, where)
        cards = [card.finished() for card in cards]
        agents = build_agents(config, where, device, start=False)
        controller = build_controller(config.controller, prepared, agents.sampler, device, where, UNRECORDED)
        scorers = own_scorers(cards, build_reward_models(cards, agents.sampler, UNRECORDED))
    source = load_agents(agents.adapters, run, config, notes, which)
    return LoadedRun(config, agents, controller, scorers, source)
