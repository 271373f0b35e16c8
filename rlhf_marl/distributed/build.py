"""Build an experiment whose agents live in workers."""

from typing import TYPE_CHECKING, final

import torch
from transformers import AutoModelForCausalLM

from rlhf_marl.config import Config
from rlhf_marl.config.schema import SharedController
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import load_questions
from rlhf_marl.distributed.cluster import check_installed, connect
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.policy.loading import context_of, load_chat_model, shapes_of
from rlhf_marl.policy.sampler import Sampler, TransformersSampler
from rlhf_marl.services.journal import UNRECORDED, Journal
from rlhf_marl.training.build import (
    Experiment,
    build_topology,
    gossip_rounds,
    model_key,
    prepare_masks,
    short_enough,
    speakers_with_tokenizers,
    tokenizer_of,
    warn_of_idle_rounds,
)

if TYPE_CHECKING:
    from rlhf_marl.distributed.team import RayTeam


def build_distributed(config: Config, where: str, device: torch.device, journal: Journal = UNRECORDED) -> Experiment:
    """Start the workers and connect them with a player in this process.

    The driver loads the agents' tokenizers, and the team's base model only for a `shared` controller.

    Args:
        where: the config's name in error messages, usually its path.
        device: of the controller, if it is a model.
        journal: records the answers of the controller's endpoint; each worker keeps one of its reward servers.

    Raises:
        UsageError: one line: file, key, what was given, what is allowed; or what is missing in which worker.
    """
    check_installed(f"{where}: runtime.kind")
    with fits_into_memory(where):
        graph, matrix = build_topology(config, where)
        warn_of_idle_rounds(matrix, gossip_rounds(config), where)
        mask_keys = prepare_masks(config, graph, where)
        questions = load_questions(config.prompts, config.seed, where)
        prepared = prepare_controller(config.controller, config.names, where)
        base: Sampler | None = None
        if isinstance(config.controller, SharedController):
            options = config.model.model_dump(exclude={"name"})
            chat_model = load_chat_model(config.model.name, f"{where}: model.name", device, **options)
            tokenizer, base = chat_model.tokenizer, TransformersSampler(chat_model)
        else:
            tokenizer = tokenizer_of(config.model, f"{where}: model.name")
        speakers = speakers_with_tokenizers(config, where)
        questions = short_enough(config, questions, tokenizer, speakers, where)
        context_length = None
        if config.validation is not None:
            context_length = min(_context_length(config, group[0], where) for group in config.by_model)
        controller = build_controller(config.controller, prepared, base, device, where, journal)
    disconnect = connect(config.runtime, config.n_workers, where)
    try:
        from rlhf_marl.distributed.team import RayTeam  # imports Ray, which `connect` has prepared

        run = None if journal.folder is None else journal.folder.parent
        team = RayTeam(config, where, graph, matrix, questions.columns, run, mask_keys)
    except BaseException:
        disconnect()
        raise

    def close() -> None:
        team.close()
        disconnect()

    player = Player(team.respond, controller, tokenizer, config.generation.max_prompt_tokens, speakers)
    journals = _Journals(journal, team)
    return Experiment(config, team, player, questions, team.cards, matrix, journals, context_length, base, close)


def _context_length(config: Config, agent: int, where: str) -> int:
    model, key = config.model_of(agent), f"{model_key(config, agent, where)}.name"
    source = model.model_dump(include={"revision", "trust_remote_code"})
    return context_of(shapes_of(AutoModelForCausalLM, model.name, key, dtype=torch.float32, **source))


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
