"""What a run would cost, from the shapes of its models alone: parameters, peak memory, tokens and disk space.

The peak is the larger of two moments, on top of what is always there. In generation it is the key-value cache and the
logits of a step; in an update the activations of one microbatch, which are counted exactly by a forward pass on the
meta device where the model can run there, and its logits. Prompts and answers are taken to be as long as the config
allows.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from rlhf_marl.algorithm.signals import critic_kind
from rlhf_marl.config import Config
from rlhf_marl.config.schema import ChatLimits, TransformersController
from rlhf_marl.dialogue.build_controller import check_limits
from rlhf_marl.dialogue.questions import Questions
from rlhf_marl.dialogue.speakers import decodings
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import Linear
from rlhf_marl.policy.chat import chat_tokens
from rlhf_marl.policy.half_linear import can_pack
from rlhf_marl.policy.loading import dtype_for, load_chat_model, shapes_of
from rlhf_marl.policy.log_probabilities import POSITIONS, TOKENS_PER_MICROBATCH, microbatches
from rlhf_marl.rewards import Card
from rlhf_marl.training.build import Agents, part_lengths

_FLOAT = 4  # bytes of float32
# On a CPU, measured with four models of 0.03 to 135 million parameters: libraries that are imported later, and space
# that the C library's allocator cannot reuse because the freed blocks have other sizes.
_LATE_IMPORTS, _FRAGMENTATION = 45_000_000, 0.5
META = torch.device("meta")


@final
@dataclass(frozen=True, slots=True)
class Forecast:
    """Sizes in bytes, counts of parameters and tokens.

    Attributes:
        base, adapter, critic: parameters of the base model, and of one agent's adapter and critic.
        memory: parts of the peak on the training device; `process` is the Python process, on the CPU only.
        unknown: models whose size is not known, because their config is not on this machine.
        updates: of the whole run. generated: tokens that the agents may generate in an update; read: of their prompts;
            controlled: tokens that the controller may generate in an update, 0 if it is not a chat model.
        run_directory: most disk space of the run directory, without the dialogues.
    """

    device: str
    dtype: str
    base: int
    adapter: int
    critic: int
    memory: dict[str, int]
    unknown: list[str]
    updates: int
    generated: int
    read: int
    controlled: int
    run_directory: int

    @property
    def peak(self) -> int:
        """Bytes of memory that the run needs at most on its device."""
        return sum(self.memory.values())


def forecast(
    config: Config,
    agents: Agents,
    questions: Questions,
    cards: Sequence[Card],
    device: torch.device,
    where: str,
) -> Forecast:
    """Forecast a run on `device` from agents that were built on the meta device.

    agents: with the dtype that the model has on `device`.
    """
    n_agents = len(config.agents)
    model, adapters = agents.chat_model.model, agents.adapters
    critic = 0 if critic_kind(config.actor.signal) == "none" else config.critic.depth * config.critic.width**2
    moments = 0 if config.actor.optimizer == "normalised" else 2
    adapter = adapters.parameters.shape[1]
    rewards, unknown = _reward_models(cards, device)
    controller = _controller(config, device, where)
    features = sum(part_lengths(config)) * config.critic.token_features * config.critic.width
    features += (config.critic.token_features + 1) * _vocabulary(model)
    activations = max(_generation(config, model), _update(config, agents, questions, device))
    memory = {
        "process": _process() + _LATE_IMPORTS if device.type == "cpu" else 0,
        "base model": memory_of(model, device, config.model.dtype),
        "adapters": n_agents * adapter * (2 + moments) * _FLOAT,
        "critics": (n_agents * critic * 8 + features) * _FLOAT,
        "reward models": rewards,
        "controller": controller,
        "activations": activations,
        "fragmentation": round(_FRAGMENTATION * activations) if device.type == "cpu" else 0,
    }
    per_update = config.dialogues * config.actor.turns_per_update
    controlled = 0
    if isinstance(config.controller, ChatLimits):
        controlled = config.controller.aggregate_tokens + config.controller.next_prompt_tokens
    state = n_agents * (adapter * (1 + moments) + critic * 3) * _FLOAT
    return Forecast(
        device=str(device),
        dtype=str(model.dtype).removeprefix("torch."),
        base=parameters_of(agents),
        adapter=adapter,
        critic=critic,
        memory={part: size for part, size in memory.items() if size},
        unknown=unknown,
        updates=config.iterations * config.turns // config.actor.turns_per_update,
        generated=per_update * sum(config.generation_of(agent).max_new_tokens for agent in range(n_agents)),
        read=per_update * n_agents * config.generation.max_prompt_tokens,
        controlled=per_update * controlled,
        run_directory=(config.keep_checkpoints + 1) * state + n_agents * (2 * adapter + critic) * _FLOAT,
    )


def parameters_of(agents: Agents) -> int:
    """Parameters of the agents' base model."""
    return sum(parameter.numel() for parameter in agents.chat_model.model.parameters()) - _adapted(agents)


def memory_of(model: nn.Module, device: torch.device, dtype: str) -> int:
    """Bytes of a model's weights on a device. dtype: as the config names it."""
    return _bytes(model) + _packed(model, device, dtype)


def _adapted(agents: Agents) -> int:
    """Parameters of the adapters that are registered in the model as views of the flat tensor."""
    return sum(p.numel() for name, p in agents.chat_model.model.named_parameters() if name.endswith((".a", ".b")))


def _bytes(model: nn.Module) -> int:
    frozen = {id(p): p for name, p in model.named_parameters() if not name.endswith((".a", ".b"))}
    return sum(tensor.numel() * tensor.element_size() for tensor in (*frozen.values(), *model.buffers()))


def _packed(model: nn.Module, device: torch.device, dtype: str) -> int:
    """The second copy of linear weights, in half precision (policy/half_linear.py). dtype: as the config names it."""
    if device.type != "cpu" or dtype != "auto" or not can_pack():
        return 0
    linears = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dtype == torch.float32]
    return sum(weight.numel() * _FLOAT // 2 for weight in linears)


def _vocabulary(model: PreTrainedModel) -> int:
    return model.get_input_embeddings().weight.shape[0]


def _reward_models(cards: Sequence[Card], device: torch.device) -> tuple[int, list[str]]:
    """Bytes of the models that the cards load, and the models whose size is unknown.

    Equal cards share one model, and all prototypes with the same encoder too.
    """
    wanted = {}
    for leaf in [leaf for card in cards for leaf in _leaves(card)]:
        for reference, dtype in leaf.loads():
            wanted["" if leaf.kind == "prototype" else leaf.model_dump_json(), reference] = dtype
    total, unknown = 0, []
    for (_, reference), dtype in wanted.items():
        try:
            total += _bytes(shapes_of(AutoModel, reference, reference, dtype=dtype_for(dtype, device)))
        except (UsageError, ValueError, KeyError, ImportError):
            unknown.append(reference)
    return total, list(dict.fromkeys(unknown))


def _leaves(card: Card) -> list[Card]:
    """The card, or for an ensemble the cards that it combines."""
    members = [leaf for member in card.member_cards() for leaf in _leaves(member)]
    return members or [card]


def _controller(config: Config, device: torch.device, where: str) -> int:
    """Bytes of the controller's own model."""
    if not isinstance(config.controller, TransformersController):
        return 0
    given = config.controller.model
    dtype = str(dtype_for(given.dtype, device)).removeprefix("torch.")
    key = f"{where}: controller.model.name"
    made = load_chat_model(given.name, key, META, **given.model_dump(exclude={"name"}) | {"dtype": dtype})
    check_limits(config.controller, made.context_length, where)
    return memory_of(made.model, device, given.dtype)


def _generation(config: Config, model: PreTrainedModel) -> int:
    """Key-value cache of a batch, the logits of a step with the sampler's copies, and the prefill's widest layer."""
    text = model.config.get_text_config()
    keys = 2 * sum(map(_width_of_keys, text.per_layer_config)) * model.dtype.itemsize
    widest = max((m.out_features for m in model.modules() if isinstance(m, nn.Linear)), default=0)
    widest = min(widest, 8 * text.hidden_size)  # the output layer reads one token of each row
    prefill = 4 * widest * config.generation.max_prompt_tokens * model.dtype.itemsize
    of_row = max(prefill, 4 * _vocabulary(model) * _FLOAT)
    return max(
        config.dialogues * n_agents * (keys * (config.generation.max_prompt_tokens + new) + of_row)
        for n_agents, new in _batches(config)
    )


def _batches(config: Config) -> list[tuple[int, int]]:
    """(agents, most tokens of an answer) of each batch of agents that sample, and then learn, together."""
    agents = range(len(config.agents))
    return [(len(agents[group.agents]), group.max_new_tokens) for group in decodings(config)]


def _width_of_keys(layer: Any) -> int:
    """Width of the keys of one token in a layer, and of its values. layer: its config."""
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    return heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)


def _update(config: Config, agents: Agents, questions: Questions, device: torch.device) -> int:
    """Activations and logits of the largest microbatch of a backward pass."""
    generation, chat = config.generation, agents.chat_model
    shared = 0
    if len(questions.conversations) == 1:  # the first turn's states are equal
        shared = len(chat_tokens(chat.tokenizer, questions.conversations[0], generation.max_prompt_tokens)) - 1
    sizes = []
    most = config.actor.tokens_per_pass or TOKENS_PER_MICROBATCH[device.type]
    for (in_batch, new), prefix in product(_batches(config), {0, shared}):  # later turns share nothing
        rest = generation.max_prompt_tokens + new - prefix
        for agents_of, dialogues in microbatches(in_batch, config.dialogues, prefix, rest, most):
            n_agents, n_rows = agents_of.stop - agents_of.start, dialogues.stop - dialogues.start
            sizes.append((n_agents * (prefix + n_rows * rest), n_agents, n_rows, new))
    _, n_agents, n_rows, new = max(sizes)
    saved, logits = _saved(agents, n_agents, n_agents * n_rows, generation.max_prompt_tokens + new, new)
    logits += 3 * POSITIONS[device.type] * _vocabulary(chat.model) * _FLOAT
    return saved + logits


def _saved(agents: Agents, n_agents: int, rows: int, length: int, responses: int) -> tuple[int, int]:
    """Bytes that autograd keeps for a batch, and of the policy's and the base model's logits.

    Models that look at values, such as mixtures of experts, cannot run on the meta device. For them it is an estimate:
    inputs and outputs of all linear layers, and of as many experts as read a token.
    """
    model, adapters = agents.chat_model.model, agents.adapters
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long, device=META)
    of_logits = 2 * rows * responses * _vocabulary(model) * model.dtype.itemsize
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), adapters.use(slice(0, n_agents)):
            model(input_ids=ids, logits_to_keep=responses, use_cache=True)
    except Exception:  # the models' code raises many unrelated types
        chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
        head = model.get_output_embeddings()
        linears = [m.weight for m in model.modules() if isinstance(m, Linear) and m is not head]
        named = model.named_parameters()
        experts = [weight for name, weight in named if weight.dim() == 3 and not name.endswith((".a", ".b"))]
        widths = sum(sum(w.shape) for w in linears) + chosen * sum(sum(w.shape[1:]) for w in experts)
        return widths * rows * length * model.dtype.itemsize, of_logits
    weights: list[Any] = [*model.parameters(), *model.buffers(), adapters.parameters]
    for weight in weights:
        kept.pop(weight.untyped_storage()._cdata, None)
    return sum(kept.values()), of_logits


def _process() -> int:
    """Bytes of this process, which has imported what a training imports."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
