"""Build an Experiment from a config. Cheap checks come first, so mistakes are reported before any model loads."""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, final

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_marl.algorithm.cooperation import COOPERATIONS
from rlhf_marl.algorithm.critic import Critic, gossip_scale
from rlhf_marl.algorithm.masks import (
    MaskedMixer,
    Masks,
    Pair,
    exposed,
    masks_left,
    pair_keys,
    rounds_to_remove,
)
from rlhf_marl.algorithm.mixing import MatrixMixer, Mixer, own_share, sufficient_rounds, team_mean
from rlhf_marl.algorithm.network import Network
from rlhf_marl.algorithm.optimizers import AgentAdam, SignalScale
from rlhf_marl.algorithm.restraint import EntropyCoefficient, KlCoefficient
from rlhf_marl.algorithm.signals import critic_kind
from rlhf_marl.algorithm.topology import adjacency, consensus_matrix
from rlhf_marl.config import Config
from rlhf_marl.config.schema import ModelConfig
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.dialogue.features import CriticFeatures
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.dialogue.speakers import Speaker, agents_in_words, decodings, speakers_of
from rlhf_marl.errors import UsageError
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.chat import chat_tokens
from rlhf_marl.policy.loading import ChatModel, load_chat_model, load_chat_tokenizer, load_embeddings
from rlhf_marl.policy.model_checks import check_training
from rlhf_marl.policy.prefix_cache import PrefixCache
from rlhf_marl.policy.references import resolve_adapter
from rlhf_marl.policy.sampler import Sampler, TransformersSampler
from rlhf_marl.rewards import Card, RewardModel, build_reward_model, load_card
from rlhf_marl.rewards.gate import check_card_gate
from rlhf_marl.sanitise import first_line
from rlhf_marl.services.journal import UNRECORDED, Journal, Recorder
from rlhf_marl.training.learner import Learner
from rlhf_marl.training.team import LocalTeam, Team

_log = logging.getLogger("rlhf_marl")
AnyTeam = TypeVar("AnyTeam", bound=Team)

# Random streams used while building; responses are seeded by [seed, agent, dialogue, turn].
_TOPOLOGY, _FEATURES, _CRITIC, _ADAPTERS = range(4)

_MASKS_LEFT = 0.1  # standard deviations of a reward: noise that is still small beside a turn's signal


@final
@dataclass(frozen=True, slots=True)
class Experiment:
    """A dialogue experiment, ready to train.

    Attributes:
        cards: the agents' finished reward models, for the run directory.
        matrix: the consensus matrix A, (N, N).
        journal: recorded answers of services.
        close: ends the processes of the team, if it has any.
        context_length: maximum tokens of prompt and response together, for validations; None: not known, so that they
            read dialogues as training does.
        sampler: of the team's base model, for judges that grade with it; None if it is not in this process.
    """

    config: Config
    team: Team
    player: Player
    questions: Questions
    cards: Sequence[Card]
    matrix: Tensor
    journal: Recorder
    context_length: int | None = None
    sampler: Sampler | None = None
    close: Callable[[], None] = lambda: None


@final
@dataclass(frozen=True, slots=True)
class Agents:
    """The agents' models: one frozen base, its stacked adapters, and a sampler over both.

    Attributes:
        speakers: their names and roles.
    """

    chat_model: ChatModel
    adapters: StackedAdapters
    sampler: Sampler
    speakers: Sequence[Speaker]


def build(
    config: Config,
    where: str,
    device: torch.device,
    journal: Journal = UNRECORDED,
    *,
    sampler: Callable[[ChatModel, StackedAdapters], Sampler] = TransformersSampler,
    mixer: Callable[[Tensor, int], Mixer] = MatrixMixer,
    team: Callable[..., Team] = LocalTeam,
) -> Experiment:
    """Load and connect everything the config names.

    Args:
        where: the config's name in error messages, usually its path.
        journal: records the answers of reward servers and endpoints.
        sampler: builds the agents' sampler from the base model and its adapters.
        mixer: builds the mixer from the consensus matrix and the number of gossip rounds.
        team: builds the team; takes the arguments of LocalTeam.

    Raises:
        UsageError: one line: file, key, what was given, what is allowed.
    """
    with fits_into_memory(where):
        graph, matrix = build_topology(config, where)
        rounds = gossip_rounds(config)
        warn_of_idle_rounds(matrix, rounds, where)
        mask_keys = prepare_masks(config, graph, where)
        questions = load_questions(config.prompts, config.seed, where)
        prepared = prepare_controller(config.controller, config.names, where)
        made, agents, cards = build_team(
            team,
            config,
            where,
            device,
            journal,
            columns=questions.columns,
            graph=graph,
            mixer=mixer(matrix, rounds),
            mask_keys=mask_keys,
            sampler=sampler,
        )
        tokenizer = agents.chat_model.tokenizer
        questions = short_enough(config, questions, tokenizer, agents.speakers, where)
        controller = build_controller(config.controller, prepared, agents.sampler, device, where, journal)
        player = Player(
            made.respond,
            controller,
            tokenizer,
            config.generation.max_prompt_tokens,
            agents.speakers,
        )
        context_length = agents.chat_model.context_length
        return Experiment(config, made, player, questions, cards, matrix, journal, context_length, agents.sampler)


def build_team(
    team: Callable[..., AnyTeam],
    config: Config,
    where: str,
    device: torch.device,
    journal: Journal,
    *,
    columns: Collection[str],
    graph: Tensor,
    mixer: Mixer,
    mean: Callable[[Tensor], Tensor] = team_mean,
    mask_keys: Mapping[Pair, bytes] | None = None,
    numbers: Sequence[int] | None = None,
    sampler: Callable[[ChatModel, StackedAdapters], Sampler] = TransformersSampler,
) -> tuple[AnyTeam, Agents, list[Card]]:
    """Load agents and their reward models, and connect them as a team.

    Args:
        team: builds the team; takes the arguments of LocalTeam.
        columns: of the questions, for reward models that read them.
        graph: (N, N) bool.
        mean: see Critic.
        mask_keys: of the agents and their neighbours; None: nothing is masked.
        numbers: of the agents in this process; by default all.

    Returns:
        The team, its agents' models, and their finished reward cards.

    Raises:
        UsageError: one line: file, key, what was given, what is allowed.
    """
    numbers = range(len(config.agents)) if numbers is None else numbers
    recipes = recipes_of(config, where, numbers)
    for recipe in recipes:
        recipe.check_columns(columns, f"{where}: prompts")
    cards = [recipe.finished() for recipe in recipes]
    for i, card in zip(numbers, cards, strict=True):
        check_card_gate(card, f"{where}: agents.{i}.reward_model")
    embeddings = None
    if config.has_own_model(numbers[0]):  # before its own model, so that only one model is in memory at a time
        source = config.model.model_dump(include={"dtype", "revision", "trust_remote_code"})
        embeddings = load_embeddings(config.model.name, f"{where}: model.name", device, **source)
    agents = build_agents(config, where, device, numbers=numbers, sampler=sampler)
    name = f"{model_key(config, numbers[0], where)}.name: {config.model_of(numbers[0]).name!r}"
    check_training(agents.chat_model.model, agents.adapters, name)
    made = team(
        agents.sampler,
        build_learner(config, agents, mixer, numbers, mean, embeddings, mask_keys),
        cards,
        build_reward_models(cards, agents.sampler, journal),
        numbers=numbers,
        adjacency=graph,
        reward=config.reward,
        gossip_rounds=gossip_rounds(config),
        seed=config.seed,
    )
    return made, agents, cards


def build_agents(
    config: Config,
    where: str,
    device: torch.device,
    *,
    numbers: Sequence[int] | None = None,
    start: bool = True,
    sampler: Callable[[ChatModel, StackedAdapters], Sampler] = TransformersSampler,
) -> Agents:
    """Load the base model and add the agents' adapters: new ones, or with `start` those that the config names.

    numbers: of the agents in this process, which share a base model; by default all.

    Raises:
        UsageError: no such model, or adapters that do not match it.
    """
    numbers = range(len(config.agents)) if numbers is None else numbers
    model, key, speakers = config.model_of(numbers[0]), model_key(config, numbers[0], where), speakers_of(config, where)
    chat_model = load_chat_model(model.name, f"{key}.name", device, **model.model_dump(exclude={"name"}))
    _check_context(config, numbers, chat_model, where)
    adapters = StackedAdapters(
        chat_model.model,
        [_seed(config.seed, _ADAPTERS, agent) for agent in numbers],
        rank=config.lora.rank,
        alpha=config.lora.alpha,
        targets=config.lora.targets,
        exclude=config.lora.exclude,
        use_rslora=config.lora.use_rslora,
        where=where,
    )
    for row, i in enumerate(numbers):
        agent = config.agents[i]
        if start and agent.adapter is not None:
            key = f"{where}: agents.{i}.adapter"
            folder = resolve_adapter(agent.adapter, key, agent.adapter_revision)
            adapters.load(row, folder, key, base=(model.name, chat_model.model.config._name_or_path))
    return Agents(chat_model, adapters, sampler(chat_model, adapters), speakers)


def speakers_with_tokenizers(config: Config, where: str) -> list[Speaker]:
    """All agents as speakers; those with base models of their own have these models' tokenizers."""
    speakers = speakers_of(config, where)
    for group in config.by_model:
        if config.has_own_model(group[0]):
            own = tokenizer_of(config.model_of(group[0]), f"{model_key(config, group[0], where)}.name")
            for agent in group:
                speakers[agent] = replace(speakers[agent], tokenizer=own)
    return speakers


def tokenizer_of(model: ModelConfig, where: str) -> PreTrainedTokenizerBase:
    """A base model's tokenizer, without its weights. where: names the model's key in errors."""
    return load_chat_tokenizer(model.name, where, **model.model_dump(exclude={"name", "dtype"}))


def model_key(config: Config, agent: int, where: str) -> str:
    """Where the config names the agent's base model."""
    return f"{where}: agents.{agent}.model" if config.has_own_model(agent) else f"{where}: model"


def recipes_of(config: Config, where: str, numbers: Sequence[int] | None = None) -> list[Card]:
    """The agents' reward cards as they are written. numbers: of the agents; by default all.

    Raises:
        UsageError: a card that is missing or invalid.
    """
    numbers = range(len(config.agents)) if numbers is None else numbers
    return [load_card(config.agents[i].reward_model, f"{where}: agents.{i}.reward_model") for i in numbers]


def build_reward_models(cards: Sequence[Card], base: Sampler, journal: Journal) -> list[RewardModel]:
    """One reward model per agent; agents with the same card share one instance."""
    built: dict[str, RewardModel] = {}
    for card in cards:
        key = card.model_dump_json()
        if key not in built:
            built[key] = build_reward_model(card, base, journal)
    return [built[card.model_dump_json()] for card in cards]


def build_topology(config: Config, where: str) -> tuple[Tensor, Tensor]:
    """Graph (N, N) bool and consensus matrix (N, N), checked against Assumption 5.1."""
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
        if given.masked:
            _check_masks(config, graph, matrix)
    except ValueError as error:
        raise UsageError(f"{where}: topology: {error}") from None
    return graph, matrix


def _check_masks(config: Config, graph: Tensor, matrix: Tensor) -> None:
    if too_much := too_much_left(config, graph, matrix):
        enough = rounds_to_remove(matrix, graph, _most_left(config)[0] / config.topology.mask_size)
        raise ValueError(
            f"gossip_rounds: {too_much}: {enough} rounds are enough; or use a smaller mask_size, which hides less"
        )


def too_much_left(config: Config, graph: Tensor, matrix: Tensor) -> str | None:
    """What the rounds leave of the masks, in words, if it is more than is allowed.

    graph, matrix: of the agents that gossip, (n, n).
    """
    size, rounds = config.topology.mask_size, gossip_rounds(config)
    (most, why), left = _most_left(config), size * masks_left(matrix, graph, rounds)
    if left <= most:
        return None
    return (
        f"{rounds} rounds leave {left:.2g} of masks of size {size:g}, in standard deviations of a reward; at most "
        f"{most:.2g} is allowed{why}"
    )


def _most_left(config: Config) -> tuple[float, str]:
    """How much of the masks may be left, in standard deviations of a reward, and for what if not for TD errors.

    The mask of one of Adam's second moments is as long as all P of them become in an update, √P times what it becomes
    itself. One update's worth may be left: more would make v several times too large in the first tens of updates,
    since the floor on second moments takes away negative errors only.
    """
    critic, n_params = config.critic, config.critic.depth * config.critic.width**2
    if critic_kind(config.actor.signal) == "none" or critic.optimizer == "sgd" or n_params**-0.5 >= _MASKS_LEFT:
        return _MASKS_LEFT, ""
    return n_params**-0.5, f" with critic.optimizer adam and {n_params:,} weights"


def prepare_masks(config: Config, graph: Tensor, where: str) -> dict[Pair, bytes] | None:
    """A key for every pair of neighbours; None without masks. Warns of agents that masks do not hide.

    Raises:
        UsageError: the environment variable for the secret is not set.
    """
    if not config.topology.masked:
        return None
    worker_of = [w for w, numbers in enumerate(config.workers) for _ in numbers] or range(len(graph))
    if known := exposed(graph, worker_of):
        _log.warning("%s: topology.masked: %s", where, masks_known(known))
    secret, variable = str(config.seed), config.topology.mask_key_env
    if variable is not None:
        if not (given := os.environ.get(variable)):
            raise UsageError(f"{where}: topology.mask_key_env: the environment variable {variable} is not set")
        secret = f"{given} {secret}"  # runs of a sweep over seeds have masks of their own
    return pair_keys(secret, graph)


def masks_known(agents: Sequence[int]) -> str:
    """The warning for agents with a single neighbour or neighbouring worker."""
    who = agents_in_words(agents)
    return f"nothing hides the values of {who} from a single neighbour or its worker, which knows all their masks"


def gossip_rounds(config: Config) -> int:
    """Rounds of each exchange; 0 if the config's agents do not cooperate by gossip."""
    return config.topology.gossip_rounds if COOPERATIONS[config.cooperation].gossips else 0


def build_learner(
    config: Config,
    agents: Agents,
    mixer: Mixer,
    numbers: Sequence[int],
    mean: Callable[[Tensor], Tensor] = team_mean,
    embeddings: Tensor | None = None,
    mask_keys: Mapping[Pair, bytes] | None = None,
) -> Learner:
    """Build the critics, the optimizers and the learner of the agents with these numbers.

    Args:
        mean: see Critic.
        embeddings: of the reference model, (vocabulary, e); None: the agents' model is the reference model.
        mask_keys: of the agents and their neighbours; None: nothing is masked.
    """
    if embeddings is None:
        embeddings = agents.chat_model.model.get_input_embeddings().weight.detach()
    timed, masks = _Timed(mixer), None if mask_keys is None else Masks(mask_keys, numbers)

    def masked(scale: float | Tensor = 1.0, non_negative: bool | Tensor = False) -> Mixer:
        return timed if masks is None else MaskedMixer(timed, masks, config.topology.mask_size * scale, non_negative)

    adapters, actor, n_agents, dtype = agents.adapters, config.actor, len(numbers), agents.adapters.parameters.dtype
    share = own_share(len(config.agents), gossip_rounds(config))  # a signal is about this much of a reward
    of_signals = masked(share**2, non_negative=True)
    base = config.discount if actor.turn_weights == "discounted" else 1.0
    return Learner(
        numbers=numbers,
        actor=actor,
        chat_model=agents.chat_model,
        adapters=adapters,
        optimizer=None if actor.optimizer == "normalised" else AgentAdam(adapters.parameters, actor.step_size),
        learned_rewards=COOPERATIONS[config.cooperation].rewards,
        scale=SignalScale(n_agents, of_signals, dtype) if actor.optimizer == "scaled_adam" else None,
        kl=KlCoefficient(n_agents, actor.kl_coefficient, actor.kl_target, actor.kl_gain, dtype),
        entropy=EntropyCoefficient(n_agents, actor.entropy_band, actor.entropy_step_size, dtype),
        critic=_critic(config, masked, adapters.parameters, mean),
        critic_steps=config.critic.steps,
        features=_features(config, embeddings),
        mixer=masked(),
        turn_weights=lambda k: base**k,
        decodings=decodings(config, numbers),
        prefixes=PrefixCache(),
        masks=masks,
        compared=config.dialogues_per_question if config.dialogues_per_question > 1 else None,
    )


@final
class _Timed:
    """Wraps a mixer and times it as stage `gossip`."""

    def __init__(self, mixer: Mixer) -> None:
        self._mixer = mixer

    @property
    def own_share(self) -> float:
        return self._mixer.own_share

    def mix(self, values: Tensor) -> Tensor:
        with stage("gossip"):
            return self._mixer.mix(values)


def warn_of_idle_rounds(matrix: Tensor, rounds: int, where: str) -> None:
    """Warn if fewer rounds would give the same matrix."""
    enough = sufficient_rounds(matrix, rounds)
    if enough < rounds and len(matrix) > 1:
        _log.warning(
            "%s: topology.gossip_rounds: %d of the %d rounds are enough: they give the same matrix within 1e-6; "
            "fewer rounds would send less; more rounds matter only on a sparser graph",
            *(where, enough, rounds),
        )


def _seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


def short_enough(
    config: Config, questions: Questions, tokenizer: PreTrainedTokenizerBase, speakers: Sequence[Speaker], where: str
) -> Questions:
    """The questions that fit the budget of a state; refuses longer ones, or leaves them out if bad rows are skipped."""
    budget = config.generation.max_prompt_tokens
    problems: dict[int, str] = {}
    for index, messages in enumerate(questions.conversations):
        prompt = f"{where}: prompts: prompt {index + 1} ({messages[-1]['content'][:40]!r}...)"
        try:
            length = max(
                len(chat_tokens(speaker.tokenizer or tokenizer, speaker.reads(messages), 10**9)) for speaker in speakers
            )
        except TemplateError as error:
            problems[index] = f"{prompt}: the model's chat template refuses it: {first_line(error)}"
            continue
        if length > budget:
            problems[index] = (
                f"{prompt} is {length} tokens long with its chat template; generation.max_prompt_tokens allows {budget}"
            )
    if not problems:
        return questions
    first = next(iter(problems.values()))
    if getattr(config.prompts, "on_bad_row", "refuse") == "refuse" or len(problems) == len(questions.conversations):
        raise UsageError(first)
    _log.warning(
        "prompts.on_bad_row: skip: %d of %d prompts are left out; the first: %s",
        *(len(problems), len(questions.conversations), first),
    )
    return questions.only([index for index in range(len(questions.conversations)) if index not in problems])


def _check_context(config: Config, numbers: Sequence[int], chat_model: ChatModel, where: str) -> None:
    wanted = config.generation.max_prompt_tokens + max(group.max_new_tokens for group in decodings(config, numbers))
    if wanted > chat_model.context_length:
        raise UsageError(
            f"{where}: generation: max_prompt_tokens + max_new_tokens is {wanted}; {config.model_of(numbers[0]).name} "
            f"has a context of {chat_model.context_length} tokens"
        )


def _critic(
    config: Config, masked: Callable[[Tensor, Tensor], Mixer], adapters: Tensor, mean: Callable[[Tensor], Tensor]
) -> Critic:
    """One critic per row of the adapters' parameters, on their device and in their dtype.

    masked: the mixer, from `gossip_scale`.
    """
    generator = torch.Generator().manual_seed(_seed(config.seed, _CRITIC))
    given = config.critic.model_dump(include={"step_size", "optimizer", "steps"})
    network = Network(
        config.critic.width,
        config.critic.depth,
        generator=generator,
        output_scale=config.critic.output_scale,
        device=adapters.device,
    )
    return Critic(
        network,
        network.initial_weights(generator).to(adapters),
        (len(adapters),),
        masked(*gossip_scale(network, config.critic.output_scale, **given)),
        step_size=config.critic.step_size,
        radius=config.critic.radius,
        optimizer=config.critic.optimizer,
        start=config.critic.start,
        average=config.critic.average,
        initial_value=config.critic.initial_value,
        mean=mean,
    )


def part_lengths(config: Config) -> list[int]:
    """Tokens that the critics keep of each part of their input: of the state and, for a Q critic, of every response."""
    agents = range(len(config.agents)) if critic_kind(config.actor.signal) == "q" else []
    return [config.generation.max_prompt_tokens, *(config.generation_of(agent).max_new_tokens for agent in agents)]


def _features(config: Config, embeddings: Tensor) -> CriticFeatures:
    return CriticFeatures(
        embeddings,
        part_lengths=part_lengths(config),
        token_features=config.critic.token_features,
        width=config.critic.width,
        generator=torch.Generator().manual_seed(_seed(config.seed, _FEATURES)),
    )
