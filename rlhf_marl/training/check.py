"""Check a config without loading weights: everything is found, cards and templates are readable, questions fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from huggingface_hub import get_token

from rlhf_marl.config import Config
from rlhf_marl.config.schema import TransformersController
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.policy.loading import dtype_for
from rlhf_marl.policy.references import package_model
from rlhf_marl.rewards import Card, load_card
from rlhf_marl.rewards.base import model_available
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.training.build import (
    Agents,
    build_agents,
    build_topology,
    gossip_rounds,
    prepare_masks,
    short_enough,
    warn_of_idle_rounds,
)
from rlhf_marl.training.forecast import META, Forecast, forecast


@final
@dataclass(frozen=True, slots=True)
class Checked:
    """A config that can be trained, as far as that is known without weights.

    Attributes:
        needs: what happens on first use: conversions, trainings of reward models, downloads.
    """

    config: Config
    agents: Agents
    questions: Questions
    cards: Sequence[Card]
    forecast: Forecast
    needs: list[str]


def check_experiment(config: Config, where: str, device: torch.device) -> Checked:
    """Check a config and forecast its costs on `device`; reads configs, tokenizers and cards, but no weights.

    Raises:
        UsageError: what training would refuse, with the same line, except for damaged weights.
    """
    dtype = str(dtype_for(config.model.dtype, device)).removeprefix("torch.")
    shaped = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    graph, matrix = build_topology(config, where)
    warn_of_idle_rounds(matrix, gossip_rounds(config), where)
    prepare_masks(config, graph, where)
    named = enumerate(agent.reward_model for agent in config.agents)
    cards = [load_card(card, f"{where}: agents.{i}.reward_model") for i, card in named]
    questions = load_questions(config.prompts, config.seed, where)
    for card in cards:
        card.check_columns(questions.columns, f"{where}: prompts")
    prepared = prepare_controller(config.controller, config.names, where)
    agents = build_agents(shaped, where, META, start=False)
    questions = short_enough(config, questions, agents.chat_model.tokenizer, agents.speakers, where)
    if not isinstance(config.controller, TransformersController):  # the forecast reads its shapes
        build_controller(config.controller, prepared, agents.sampler, META, where, UNRECORDED)
    for card in cards:
        if not card.loads() and not card.member_cards():
            card.build(agents.sampler, UNRECORDED)  # imports its function, or finds its key
    found = forecast(config, agents, questions, cards, device, where)
    return Checked(config, agents, questions, cards, found, _needs(config, cards, where))


def _needs(config: Config, cards: Sequence[Card], where: str) -> list[str]:
    needs = [f"{card.name}: trains on first use" for card in cards if card.available() == "trains on first use"]
    models = [config.model.name, *(reference for card in cards for reference, _ in card.loads())]
    if isinstance(config.controller, TransformersController):
        models.append(config.controller.model.name)
    for reference in dict.fromkeys(models):
        if reference.startswith("package:") and package_model(reference, where)[1] is not None:
            needs.append(f"{reference}: is converted on first use")
        if model_available(reference) == "not cached":
            token = "" if get_token() else "; if it is gated, request access and set HF_TOKEN"
            needs.append(f"{reference}: is downloaded from the Hub{token}")
    return list(dict.fromkeys(needs))
