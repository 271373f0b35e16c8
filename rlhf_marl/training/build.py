"""Config in, DialogueSystem out. Cheap checks come first, so that a mistake is told before any model loads."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_marl.algorithm import Critic, Network, adjacency, consensus_matrix, consensus_power, critic_kind, spectral_gap
from rlhf_marl.config import Config
from rlhf_marl.config.schema import (
    ChatLimits,
    ModelConfig,
    OpenAIController,
    ScriptedController,
    SharedController,
    TransformersController,
)
from rlhf_marl.dialogue import controller as controllers
from rlhf_marl.dialogue.features import CriticFeatures
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.perf.memory import keep_freed_memory
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.chat import Message, chat_tokens, check_chat_template, end_tokens
from rlhf_marl.policy.generation import Memory, generate
from rlhf_marl.policy.instructions import render
from rlhf_marl.policy.loading import Source, dtype_for, load_causal_lm, load_tokenizer
from rlhf_marl.policy.mkl_linear import pack_linears
from rlhf_marl.rewards import Card, ChatModel, RewardModel, build_reward_model, finished_card, load_card
from rlhf_marl.runs.journal import UNRECORDED, Journal
from rlhf_marl.sanitise import first_line
from rlhf_marl.services.endpoint import Endpoint
from rlhf_marl.training.system import DialogueSystem, Topology

# What is drawn while building; responses are sampled from [seed, agent, dialogue, turn].
_TOPOLOGY, _FEATURES, _CRITIC, _ADAPTERS = range(4)


def build(
    config: Config,
    source: str,
    device: torch.device,
    cards: Sequence[Card] | None = None,
    journal: Journal = UNRECORDED,
) -> DialogueSystem:
    """Load and connect everything the config names.

    Args:
        source: what the config is called in error lines, usually its path.
        cards: the agents' finished reward models, as a run directory keeps them; by default those the config names.
        journal: where the answers of reward servers and endpoints are kept.

    Raises:
        UsageError: one line: source, key, what was given, what is allowed.
    """
    keep_freed_memory()
    try:
        return _build(config, source, device, cards, journal)
    except (MemoryError, RuntimeError) as error:  # torch tells in words alone that memory was the problem
        if isinstance(error, MemoryError) or "allocate" in str(error):
            sizes = "model, lora.rank, critic.width, critic.token_features, generation.max_prompt_tokens, agents"
            raise UsageError(f"{source}: does not fit into memory ({first_line(error)}): {sizes}") from None
        raise


def _build(
    config: Config, source: str, device: torch.device, cards: Sequence[Card] | None, journal: Journal
) -> DialogueSystem:
    topology = build_topology(config, source)
    recipes = cards or [
        load_card(agent.reward_model, f"{source}: agents.{i}.reward_model") for i, agent in enumerate(config.agents)
    ]
    questions = load_questions(config.prompts, config.seed, source)
    templates = _templates(config, source)
    cards = [finished_card(recipe) for recipe in recipes]
    model, tokenizer, ends = load_model(config.model, f"{source}: model", device)
    _check_context(config, model, source)
    _check_lengths(config, questions, tokenizer, source)
    embeddings = model.get_input_embeddings().weight.detach()
    adapters = StackedAdapters(
        model,
        [_seed(config.seed, _ADAPTERS, agent) for agent in range(len(config.agents))],
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=config.lora.targets,
        where=source,
    )
    for i, agent in enumerate(config.agents):
        if agent.adapter is not None:
            weights = find_data(f"{agent.adapter}/adapter_config.json", f"{source}: agents.{i}.adapter")
            adapters.load(i, weights.parent, f"{source}: agents.{i}.adapter")
    return DialogueSystem(
        config=config,
        model=model,
        tokenizer=tokenizer,
        end_tokens=ends,
        adapters=adapters,
        optimizer=torch.optim.Adam([adapters.parameters], lr=config.actor.step_size)
        if config.actor.optimizer == "adam"
        else None,
        topology=topology,
        critic=_critic(config, topology, device),
        features=_features(config, embeddings),
        cards=cards,
        reward_models=_reward_models(cards, (model, tokenizer), journal),
        controller=_controller(config, templates, model, tokenizer, ends, adapters, device, source, journal),
        questions=questions,
        journal=journal,
        memory=Memory(),
    )


def _reward_models(cards: Sequence[Card], base: ChatModel, journal: Journal) -> list[RewardModel]:
    """One per agent; agents with the same card share it, and its memory."""
    built: dict[str, RewardModel] = {}
    for card in cards:
        key = card.model_dump_json()
        if key not in built:
            built[key] = build_reward_model(card, base, journal)
    return [built[card.model_dump_json()] for card in cards]


def build_topology(config: Config, source: str) -> Topology:
    """Graph, consensus matrix and its gossip power, checked against Assumption 5.1."""
    given, n_agents = config.topology, len(config.agents)
    generator = torch.Generator().manual_seed(_seed(config.seed, _TOPOLOGY))
    try:
        graph = adjacency(
            given.graph,
            n_agents,
            edges=None if given.edges is None else [(a, b) for a, b in given.edges],
            edge_probability=given.edge_probability,
            generator=generator,
        )
        matrix = consensus_matrix(
            given.matrix, graph, laziness=given.laziness, given=given.weights, generator=generator
        )
    except ValueError as error:
        raise UsageError(f"{source}: topology: {error}") from None
    return Topology(graph, matrix, consensus_power(matrix, given.gossip_rounds), spectral_gap(matrix))


def _seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


def load_model(
    model: ModelConfig, where: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """A chat model ready for inference, its tokenizer and the ids that end a response."""
    source: Source = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    tokenizer = load_tokenizer(model.name, f"{where}.name", **source)
    check_chat_template(tokenizer, f"{where}.name: {model.name!r}")
    dtype = dtype_for(model.dtype, device)
    loaded = load_causal_lm(model.name, f"{where}.name", dtype=dtype, **source).to(device).eval()
    pack_linears(loaded.requires_grad_(False))
    ends = end_tokens(tokenizer, loaded.generation_config.eos_token_id if loaded.generation_config else None)
    return loaded, tokenizer, ends


def _check_lengths(config: Config, questions: Questions, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    budget = config.generation.max_prompt_tokens
    for number, text in enumerate(questions.texts, 1):
        length = len(chat_tokens(tokenizer, [Message(role="user", content=text)], 10**9))
        if length > budget:
            raise UsageError(
                f"{source}: prompts: prompt {number} ({text[:40]!r}...) is {length} tokens long with its chat "
                f"template; generation.max_prompt_tokens allows {budget}"
            )


def _check_context(config: Config, model: PreTrainedModel, source: str) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    wanted = config.generation.max_prompt_tokens + config.generation.max_new_tokens
    if context is not None and wanted > context:
        raise UsageError(
            f"{source}: generation: max_prompt_tokens + max_new_tokens is {wanted}; {config.model.name} has a context "
            f"of {context} tokens"
        )


def _critic(config: Config, topology: Topology, device: torch.device) -> Critic:
    generator = torch.Generator().manual_seed(_seed(config.seed, _CRITIC))
    network = Network(
        config.critic.width,
        config.critic.depth,
        generator=generator,
        output_scale=config.critic.output_scale,
        device=device,
    )
    return Critic(
        network,
        network.initial_weights(generator).to(device),
        (len(config.agents),),
        topology.power,
        step_size=config.critic.step_size,
        radius=config.critic.radius,
        optimizer=config.critic.optimizer,
        start=config.critic.start,
        average=config.critic.average,
    )


def _features(config: Config, embeddings: torch.Tensor) -> CriticFeatures:
    generation = config.generation
    responses = len(config.agents) if critic_kind(config.actor.signal) == "q" else 0
    return CriticFeatures(
        embeddings,
        part_lengths=[generation.max_prompt_tokens, *[generation.max_new_tokens] * responses],
        token_features=config.critic.token_features,
        width=config.critic.width,
        generator=torch.Generator().manual_seed(_seed(config.seed, _FEATURES)),
    )


def _templates(config: Config, source: str) -> controllers.Templates | None:
    if isinstance(config.controller, ScriptedController):
        example = {"prompt": "p", "responses": ["text"] * len(config.agents)}
        for text in (config.controller.aggregate, *config.controller.next_prompts):
            render(text, f"{source}: controller", **example)
        return None
    return controllers.load_templates(find_data(config.controller.templates, f"{source}: controller.templates"))


def _controller(
    config: Config,
    templates: controllers.Templates | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    adapters: StackedAdapters,
    device: torch.device,
    source: str,
    journal: Journal,
) -> controllers.Controller:
    match config.controller:
        case ScriptedController() as scripted:
            return controllers.ScriptedController(scripted.aggregate, scripted.next_prompts)
        case SharedController() as limits:
            chat = local_chat(model, tokenizer, ends, adapters)
        case TransformersController() as limits:
            chat = local_chat(*load_model(limits.model, f"{source}: controller.model", device))
        case OpenAIController() as limits:
            chat = controllers.endpoint_chat(
                Endpoint(
                    f"{source}: controller",
                    limits.model,
                    api_key_env=limits.api_key_env,
                    base_url=limits.base_url,
                    timeout=limits.timeout,
                    max_retries=limits.max_retries,
                    journal=journal,
                )
            )
    assert templates is not None
    return controllers.ChatController(chat, templates, **_chat_limits(limits))


def _chat_limits(limits: ChatLimits) -> dict[str, Any]:
    return {
        name: getattr(limits, name) for name in ("aggregate_tokens", "next_prompt_tokens", "max_response_characters")
    }


def local_chat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ends: list[int],
    adapters: StackedAdapters | None = None,
    agents: slice | None = None,
) -> controllers.Chat:
    """A local model as greedy chat; with `adapters`, those of `agents` (by default none) are on while it speaks.

    What stands before the last message (a task's worked examples) is read once and remembered, unless agents speak,
    who learn.
    """
    context = getattr(model.config, "max_position_embeddings", None) or 10**9
    memory = Memory()

    def chat(conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        prompts = [chat_tokens(tokenizer, messages, context - max_tokens) for messages in conversations]
        earlier = _earlier_tokens(tokenizer, conversations[0], prompts) if agents is None else []
        with adapters.use(agents) if adapters else nullcontext():
            remembered = memory.read(model, earlier) if earlier else None
            rows = generate(model, prompts, max_new_tokens=max_tokens, end_tokens=ends, remembered=remembered)
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    return chat


def _earlier_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompts: Sequence[Sequence[int]]
) -> list[int]:
    """Ids of the messages before the last one (after a system message), as far as all prompts begin with them."""
    if len(messages) < 3:
        return []
    columns = zip(chat_tokens(tokenizer, messages[:-1], 10**9), *prompts, strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
