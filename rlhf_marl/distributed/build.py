"""Build an experiment whose agents live in workers."""

from typing import TYPE_CHECKING, final

import torch

from rlhf_marl.config import Config
from rlhf_marl.config.schema import SharedController
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import load_questions
from rlhf_marl.dialogue.speakers import speakers_of
from rlhf_marl.distributed.cluster import check_installed, connect
from rlhf_marl.policy.loading import load_chat_model, load_tokenizer
from rlhf_marl.policy.sampler import Sampler, TransformersSampler
from rlhf_marl.services.journal import UNRECORDED, Journal
from rlhf_marl.training.build import (
    Experiment,
    build_topology,
    fits_into_memory,
    gossip_rounds,
    prepare_masks,
    short_enough,
    warn_of_idle_rounds,
)

if TYPE_CHECKING:
    from rlhf_marl.distributed.team import RayTeam


def build_distributed(config: Config, where: str, device: torch.device, journal: Journal = UNRECORDED) -> Experiment:
    """Start the workers and connect them with a player in this process.

    The driver loads the agents' tokenizer, and their base model only for a `shared` controller.

    Args:
        where: the config's name in error messages, usually its path.
        device: of the controller, if it is a model.
        journal: records the answers of the controller's endpoint; each worker keeps one of its reward servers.

    Raises:
        UsageError: one line: file, key, what was given, what is allowed; or what is missing in which worker.
    """
    check_installed(where)
    with fits_into_memory(where):
        graph, matrix = build_topology(config, where)
        warn_of_idle_rounds(matrix, gossip_rounds(config), where)
        mask_keys = prepare_masks(config, graph, where)
        questions = load_questions(config.prompts, config.seed, where)
        prepared = prepare_controller(config.controller, config.names, where)
        speakers = speakers_of(config, where)
        base: Sampler | None = None
        name, options = f"{where}: model.name", config.model.model_dump(exclude={"name"})
        if isinstance(config.controller, SharedController):
            chat_model = load_chat_model(config.model.name, name, device, **options)
            tokenizer, base = chat_model.tokenizer, TransformersSampler(chat_model)
        else:
            tokenizer = load_tokenizer(config.model.name, name, **{k: v for k, v in options.items() if k != "dtype"})
        questions = short_enough(config, questions, tokenizer, speakers, where)
        controller = build_controller(config.controller, prepared, base, device, where, journal)
    disconnect = connect(config.runtime, config.n_workers, where)
    try:
        from rlhf_marl.distributed.team import RayTeam  # imports Ray, which `connect` has prepared

        run = None if journal.folder is None else journal.folder.parent
        team = RayTeam(config, where, graph, matrix, run, mask_keys)
    except BaseException:
        disconnect()
        raise

    def close() -> None:
        team.close()
        disconnect()

    player = Player(team.respond, controller, tokenizer, config.generation.max_prompt_tokens, speakers)
    return Experiment(config, team, player, questions, team.cards, matrix, _Journals(journal, team), close=close)


@final
class _Journals:
    """The journals of driver and workers."""

    def __init__(self, own: Journal, team: "RayTeam") -> None:
        self._own, self._team = own, team

    def begin(self, iteration: int) -> None:
        self._own.begin(iteration)
        self._team.begin(iteration)

    def forget_before(self, iteration: int) -> None:
        self._own.forget_before(iteration)
        self._team.forget_before(iteration)
