"""Check a config without loading weights: everything is found, cards and templates are readable, questions fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from huggingface_hub import get_token

from rlhf_marl.config import Config
from rlhf_marl.config.schema import ModelConfig, TransformersController
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.policy.loading import dtype_for
from rlhf_marl.policy.references import package_model
from rlhf_marl.rewards import Card
from rlhf_marl.rewards.base import model_available
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.training.build import (
    Agents,
    build_agents,
    build_topology,
    gossip_rounds,
    prepare_masks,
    recipes_of,
    short_enough,
    speakers_with_tokenizers,
    warn_of_idle_rounds,
)
from rlhf_marl.training.forecast import META, Forecast, forecast, memory_of, parameters_of


@final
@dataclass(frozen=True, slots=True)
class OwnModel:
    """A base model that some agents have instead of the team's.

    Attributes:
        agents: their numbers. parameters: count. memory: bytes in each of their workers.
    """

    agents: list[int]
    name: str
    parameters: int
    memory: int


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """A config that can be trained, as far as that is known without weights.

    Attributes:
        agents: as if all had the reference model, `config.model`.
        own_models: of agents that have another.
        needs: what happens on first use: conversions, trainings of reward models, downloads.
    """

    config: Config
    agents: Agents
    questions: Questions
    cards: Sequence[Card]
    forecast: Forecast
    own_models: list[OwnModel]
    needs: list[str]


def check_experiment(config: Config, where: str, device: torch.device, judges: Sequence[Card] = ()) -> Checked:
    """Check a config and forecast its costs on `device`; reads configs, tokenizers and cards, but no weights.

    judges: the validation's cards.

    Raises:
        UsageError: what training would refuse, with the same line, except for damaged weights.
    """
    graph, matrix = build_topology(config, where)
    warn_of_idle_rounds(matrix, gossip_rounds(config), where)
    prepare_masks(config, graph, where)
    cards = recipes_of(config, where)
    questions = load_questions(config.prompts, config.seed, where)
    for card in cards:
        card.check_columns(questions.columns, f"{where}: prompts")
    prepared = prepare_controller(config.controller, config.names, where)
    agents = build_agents(_shaped(config.over_reference_model(), device), where, META, start=False)
    own_models = []
    for numbers in config.by_model:
        if config.has_own_model(numbers[0]):
            own = build_agents(_shaped(config, device), where, META, numbers=numbers, start=False)
            given = config.model_of(numbers[0])
            memory = memory_of(own.chat_model.model, device, given.dtype)
            own_models.append(OwnModel(numbers, given.name, parameters_of(own), memory))
    speakers = speakers_with_tokenizers(config, where)
    questions = short_enough(config, questions, agents.chat_model.tokenizer, speakers, where)
    if not isinstance(config.controller, TransformersController):  # the forecast reads its shapes
        build_controller(config.controller, prepared, agents.sampler, META, where, UNRECORDED)
    scorers = [*cards, *judges]
    for card in scorers:
        if not card.loads() and not card.member_cards():
            card.build(agents.sampler, UNRECORDED)  # imports its function, or finds its key
    found = forecast(config, agents, questions, scorers, device, where)
    return Checked(config, agents, questions, cards, found, own_models, _needs(config, scorers, where))


def _shaped(config: Config, device: torch.device) -> Config:
    """The config with the dtypes that its models have on a device."""

    def on_device(model: ModelConfig) -> ModelConfig:
        return model.model_copy(update={"dtype": str(dtype_for(model.dtype, device)).removeprefix("torch.")})

    agents = [agent.model_copy(update={"model": agent.model and on_device(agent.model)}) for agent in config.agents]
    return config.model_copy(update={"model": on_device(config.model), "agents": agents})


def _needs(config: Config, cards: Sequence[Card], where: str) -> list[str]:
    needs = [f"{card.name}: trains on first use" for card in cards if card.available() == "trains on first use"]
    models = [config.model.name, *(config.model_of(group[0]).name for group in config.by_model)]
    models = [*models, *(reference for card in cards for reference, _ in card.loads())]
    if isinstance(config.controller, TransformersController):
        models.append(config.controller.model.name)
    for reference in dict.fromkeys(models):
        if reference.startswith("package:") and package_model(reference, where)[1] is not None:
            needs.append(f"{reference}: is converted on first use")
        if model_available(reference) == "not cached":
            token = "" if get_token() else "; if it is gated, request access and set HF_TOKEN"
            needs.append(f"{reference}: is downloaded from the Hub{token}")
    return list(dict.fromkeys(needs))
