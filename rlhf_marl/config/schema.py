"""The keys of an experiment's config, with their defaults and bounds.

Each attribute's docstring is its help text in the JSON Schema (`rlhf-marl schema`).
"""

import re
from collections.abc import Callable, Iterable
from datetime import date
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlhf_marl.algorithm.cooperation import COOPERATIONS
from rlhf_marl.algorithm.objectives import OBJECTIVES
from rlhf_marl.algorithm.signals import CREDITS, SIGNALS, critic_kind
from rlhf_marl.config.validation import LARGEST, Address, Retries, Seconds
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.sanitise import first_line

PositiveInt = Annotated[int, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=LARGEST)]
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
TemplateValue = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None
LayerNames = Text | Annotated[list[Text], Field(min_length=1)]
FunctionReference = Annotated[str, Field(pattern=r"^(\w+(\.\w+)*|.+\.py):\w+$")]


def _role(given: Any) -> Any:
    """The text of a role's file, so that the config of a run holds the role itself."""
    if not isinstance(given, str) or not re.fullmatch(r"\S+\.(txt|md|jinja)", given):
        return given
    try:
        return find_data(given, "file").read_text("utf-8").strip()
    except (UsageError, UnicodeDecodeError) as error:
        raise ValueError(first_line(error).removeprefix("file: ")) from None


Role = Annotated[str, Field(min_length=1, max_length=20_000), BeforeValidator(_role)]


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is not a date; it must be YYYY-MM-DD") from None


# YAML reads a date without quotes as a date.
Day = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is date else given), AfterValidator(_day)]


def registered(names: Callable[[], Iterable[str]]) -> Any:
    """A string type that must be a registered name. Checked at validation time, so later registrations count."""

    def check(name: str) -> str:
        *others, last = map(repr, names())
        if name not in names():
            raise ValueError(f"{name!r} is not allowed; choose {' or '.join([', '.join(others), last])}")
        return name

    return Annotated[str, AfterValidator(check), Field(json_schema_extra=lambda schema: schema.update(enum=[*names()]))]


CooperationName: Any = registered(lambda: COOPERATIONS)
# Without signals that enumerate actions: responses cannot be enumerated.
SignalName: Any = registered(lambda: [name for name, signal in SIGNALS.items() if not signal.enumerates])
CreditName: Any = registered(lambda: CREDITS)
ObjectiveName: Any = registered(lambda: OBJECTIVES)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """A causal language model with a chat template."""

    name: Text
    """Hub id, local folder, or package:<import name>/<file> for a model inside an installed package."""
    revision: str | None = None
    """Hub revision; a full commit hash pins the weights."""
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on CUDA; elsewhere float32, on a CPU with weights rounded to half precision. float64: adapters and
    critics too, to compare runs to the last digit; otherwise these are float32."""
    trust_remote_code: bool = False
    """Run code from the model's repository; needs a full commit hash as revision."""
    chat_template: Text | None = None
    """Name of one of the tokenizer's chat templates if it has several, or a file with a Jinja2 template."""
    chat_template_kwargs: dict[Text, TemplateValue] = {}
    """Values of the template's own variables, such as {enable_thinking: false}."""
    chat_template_date: Day = "2024-07-26"
    """YYYY-MM-DD: what templates that write the day's date get. It does not change from day to day, so that a run
    repeats."""


class LoraConfig(Section):
    """The LoRA adapter of each agent."""

    rank: Annotated[int, Field(gt=0, le=1024)] = 8
    alpha: PositiveFloat = 16.0
    """Scale: the low-rank product is multiplied by alpha / rank."""
    use_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, which keeps the scale at high ranks."""
    targets: LayerNames = "all-linear"
    """Linear layers to adapt, as PEFT's target_modules: a list of names (whole, or the last parts), a regular
    expression for whole names, or all-linear: all but the output layer."""
    exclude: LayerNames | None = None
    """Layers to leave out of `targets`, as PEFT's exclude_modules: a list of names or a regular expression."""


class AgentGeneration(Section):
    """Where an agent's generation differs from that of the team."""

    max_new_tokens: PositiveInt | None = None
    temperature: Temperature | None = None


class AgentConfig(Section):
    name: Annotated[str, Field(pattern=r"^\w[\w .'-]{0,39}$")] | None = None
    """A name for templates, metrics and reports; by default agent 0, agent 1, ..."""
    system: Role | None = None
    """The agent's role: a system message that it alone reads, as text or as a file (.txt, .md or .jinja). A Jinja2
    template over `name` and `names`."""
    generation: AgentGeneration = AgentGeneration()
    reward_model: Text
    """Path of the reward model's card."""
    adapter: Text | None = None
    """PEFT LoRA adapter to start from: a folder or a hub id; by default a new one."""
    adapter_revision: str | None = None
    """The adapter's hub revision; a full commit hash pins the weights."""
    model: ModelConfig | None = None
    """A base model of the agent's own, instead of the team's `model`, which stays the reference whose token embeddings
    all critics read. Needs runtime.kind ray."""


class GenerationConfig(Section):
    """How agents generate answers."""

    max_new_tokens: PositiveInt = 32
    """Token limit of an answer."""
    max_prompt_tokens: PositiveInt = 128
    """Token budget of the state (the dialogue so far); longer states lose their oldest messages."""
    temperature: Temperature = 1.0
    """Sampling temperature; log-probabilities are trained at the same temperature."""


class FixedPrompt(Section):
    source: Literal["fixed"] = "fixed"
    question: Text = "how do I threaten others?"
    """Every dialogue starts with this question (the paper's setting)."""


class JsonlPrompts(Section):
    source: Literal["jsonl"]
    path: Text
    """A file: JSON Lines (also gzipped), a JSON array, CSV, TSV or Parquet, by the end of its name."""
    column: Text = "prompt"
    """Texts, lists of messages, or transcripts in hh-rlhf format; answers at their end are left out."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows without a prompt, and prompts longer than generation.max_prompt_tokens: stop, or leave out and count."""


class DatasetPrompts(Section):
    source: Literal["datasets"]
    name: Text
    """Name or local path for `datasets.load_dataset`, a folder that `save_to_disk` wrote, or a file."""
    subset: str | None = None
    split: Text = "train"
    revision: str | None = None
    column: Text
    """Texts, lists of messages, or transcripts in hh-rlhf format; answers at their end are left out."""
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    """Rows without a prompt, and prompts longer than generation.max_prompt_tokens: stop, or leave out and count."""


Prompts = Annotated[FixedPrompt | JsonlPrompts | DatasetPrompts, Field(discriminator="source")]


class ChatLimits(Section):
    templates: Text = "prompts/controller.yaml"
    """File with the instructions (Jinja2) for merging the responses and writing the next prompt."""
    aggregate_tokens: PositiveInt = 48
    """Token limit of the team's answer."""
    next_prompt_tokens: PositiveInt = 32
    """Token limit of the next prompt."""
    max_response_characters: PositiveInt = 1000
    """Each agent's text is cut to this length before the controller reads it."""


class SharedController(ChatLimits):
    """The agents' own base model with adapters off: no extra memory."""

    kind: Literal["shared"] = "shared"


class TransformersController(ChatLimits):
    """Another local chat model."""

    kind: Literal["transformers"]
    model: ModelConfig


class OpenAIController(ChatLimits):
    """Any OpenAI-compatible chat endpoint. The key comes only from the environment."""

    kind: Literal["openai"]
    model: Text
    """The model's name at the endpoint."""
    base_url: Address | None = None
    """Address of the endpoint; by default OpenAI's."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout: Seconds = 60.0
    """Seconds one request may take."""
    max_retries: Retries = 5
    """Retries with exponential backoff after connection errors, timeouts, 408, 425, 429, 5xx and invalid answers."""


class ScriptedController(Section):
    """No model: Jinja2 templates over `prompt`, `responses`, `names` and `history`, the messages before the prompt."""

    kind: Literal["scripted"]
    aggregate: Text = "{{ responses[0] }}"
    """Template of the team's answer."""
    next_prompts: Annotated[list[Text], Field(min_length=1)]
    """Templates of the next prompt after turn 1, 2, ...; the last one repeats."""


class CallableController(Section):
    """A Python function f(messages, responses, turn=k, last=bool) -> (answer, next prompt), called in every turn."""

    kind: Literal["callable"]
    function: FunctionReference
    """module:function, or file.py:function, found from the working folder."""


Controller = Annotated[
    SharedController | TransformersController | OpenAIController | ScriptedController | CallableController,
    Field(discriminator="kind"),
]


class TopologyConfig(Section):
    """The communication graph and the consensus matrix on it (Definition 4.1)."""

    graph: Literal["ring", "complete", "star", "grid", "exponential", "random", "explicit"] = "ring"
    """explicit: the graph of `edges`."""
    edges: list[Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]] | None = None
    """Pairs of agents, for graph explicit."""
    edge_probability: Fraction = 0.5
    """For graph random, which is drawn again until it is connected."""
    matrix: Literal["metropolis_hastings", "sinkhorn", "uniform", "given"] = "metropolis_hastings"
    """How the consensus weights follow from the graph; given: they are in `weights`."""
    weights: list[list[float]] | None = None
    """The consensus matrix itself, for matrix given."""
    laziness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the identity mixed into the matrix; slows consensus down."""
    gossip_rounds: NonNegativeInt = 20
    """Multiplications by the consensus matrix per exchange; 0 = no consensus."""
    masked: bool = False
    """Neighbours add a common random number with opposite signs to all that they gossip: the mean stays, and single
    values are hidden. For what they do not hide see docs/SECURITY.md."""
    mask_size: PositiveFloat = 10.0
    """Standard deviation of these numbers. For TD errors in units of a scaled reward's standard deviation, which is
    taken as 1; for critics in lengths of a step. Larger masks hide more and need more gossip rounds."""
    mask_key_env: Text | None = None
    """Name of an environment variable with a secret that seeds these numbers; only the driver reads it. null = they
    follow from `seed`, which every agent knows."""


class CriticConfig(Section):
    """Algorithm 2 on the network of Eq. (5). actor.signal determines whether it is a Q or a V critic."""

    width: Annotated[int, Field(gt=0, le=8192)] = 256
    """m of Eq. (5)."""
    depth: Annotated[int, Field(gt=0, le=32)] = 3
    """D of Eq. (5)."""
    token_features: Annotated[int, Field(gt=0, le=1024)] = 16
    """Output dimension of the fixed random map of each token's embedding, the first factor of H."""
    output_scale: PositiveFloat = 1.0
    """Multiplies b of Eq. (5). The paper's 1.0 spreads initial values like N(0, 2m), far above rewards near 1."""
    initial_value: Literal["zero", "network"] = "zero"
    """zero: the initial network is subtracted, so that values start at 0; network: not subtracted, as in the paper."""
    optimizer: Literal["sgd", "adam"] = "adam"
    step_size: PositiveFloat = 1e-4
    """β of Algorithm 2."""
    steps: PositiveInt = 1
    """K: TD steps per update. Step k uses the update's k-th turn; after the last turn the first one follows."""
    radius: PositiveFloat | None = 10.0
    """B: Frobenius radius of each layer's ball around its initial weights; null = no projection."""
    start: Literal["warm", "restart"] = "warm"
    """warm: start from the last gossiped weights; restart: start every update from W(0), as in the paper."""
    average: bool = True
    """Gossip line 9's running average over the K steps; false: the last iterate."""


class ActorConfig(Section):
    """Algorithm 1's actor step."""

    signal: SignalName = "td_v"
    """The weight of the score function; see docs/algorithm.md."""
    credit: CreditName = "local"
    """local: the own immediate reward and gossiped values; consensus: only the gossiped TD error."""
    baseline: Literal["none", "leave_one_out"] = "leave_one_out"
    """leave_one_out: subtract the mean signal of the other parallel dialogues, with dialogues_per_question above 1 of
    those with the same question."""
    objective: ObjectiveName = "policy_gradient"
    """policy_gradient: the signal weights every token's score function; ppo_clip: PPO's clipped objective, with the
    signal as advantage."""
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """ε of ppo_clip."""
    optimizer: Literal["scaled_adam", "adam", "normalised"] = "scaled_adam"
    """scaled_adam: Adam, with shorter steps for an agent whose signal is smaller than the team's; normalised: line 17's
    step, of length step_size."""
    step_size: PositiveFloat = 1e-4
    """α of Algorithm 1."""
    turns_per_update: PositiveInt = 1
    """M: turns whose directions are averaged into one update; divides `turns`."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the base model, summed over a response's tokens; with kl_target, at the start."""
    kl_target: PositiveFloat | None = None
    """KL to the base model that each agent's weight adapts towards, in nats per answer token; null = fixed weight."""
    kl_gain: Annotated[float, Field(gt=0, lt=5)] = 1.0
    """Per update the weight grows by at most half of this share and falls by at most a fifth of it. The published 0.1
    is for thousands of updates."""
    entropy_band: Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] | None = None
    """[low, high] in nats per token: below low an agent gets an ever larger bonus for entropy, above high a penalty."""
    entropy_step_size: PositiveFloat = 0.01
    """Growth of bonus and penalty per update and nat outside the band."""
    turn_weights: Literal["equal", "discounted"] = "equal"
    """discounted: turn k has weight γ^k, as in the gradient of Eq. (1); equal: every turn has weight 1."""
    max_gradient_norm: PositiveFloat | None = None
    """Each agent's gradient is clipped to this norm (except for optimizer normalised); null = no clipping."""
    tokens_per_pass: PositiveInt | None = None
    """Most tokens of one backward pass: more need more memory and may be faster; null = 512 on a CPU, 4096 on a GPU."""
    mask_truncated: bool = False
    """Leave responses that reach their token limit without an end token out of the actors' gradients, KL and entropy
    terms included. Critics, baselines and metrics still see them."""


# Section, its tag, the default tag, and the keys that imply another tag.
_DEFAULT_KINDS = (
    ("prompts", "source", "fixed", {"path", "name"}),
    ("controller", "kind", "shared", {"model", "next_prompts"}),
)


class RewardConfig(Section):
    """What the agents' reward models score."""

    of: Literal["response", "team", "both"] = "response"
    """response: the agent's own response, as in the paper; team: the team's merged answer; both: the weighted mean."""
    team_weight: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the team's answer, for both."""
    missing_end_penalty: NonNegativeFloat = 0.0
    """Subtracted from an agent's scaled reward for a response that reaches its token limit without an end token."""
    length_penalty: Annotated[float, Field(ge=-1e3, le=1e3)] = 0.0
    """Subtracted from an agent's scaled reward per token of its response; negative: long responses are rewarded."""


class ValidationConfig(Section):
    """Held-out questions asked during training, and scored by judges that train nobody."""

    judges: Annotated[list[Text], Field(min_length=1)]
    """Reward cards, none of which trains an agent."""
    questions: Text = "prompts/evaluation.jsonl"
    """A file as `rlhf-marl evaluate` reads it. Questions that are also asked in training are left out."""
    limit: PositiveInt | None = None
    """Number of questions, spread evenly over the kinds; null = all."""
    every: PositiveInt = 5
    """Iterations between validations; the first is before training, the last after it."""
    turns: Annotated[int, Field(gt=0, le=1000)] = 1
    """Turns of questions without follow-ups."""
    patience: PositiveInt | None = None
    """Training ends early if so many validations in a row brought no new best while the training reward rose; null =
    never."""


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"{gpus:g} given; above 1 it must be whole")
    return gpus


class RuntimeConfig(Section):
    """Where the agents live."""

    kind: Literal["local", "ray"] = "local"
    """local: all in this process, stacked; ray: in worker processes, on this machine or a Ray cluster, which exchange
    critics with their neighbours only. Needs the extra `distributed`; see docs/distributed.md."""
    address: Text | None = None
    """Ray cluster to join, as host:port or auto; by default Ray is started on this machine for the time of the run.
    With `sweep --runtime ray`: the cluster that trains the runs, by default auto, a Ray that is there already."""
    agents_per_worker: Annotated[int, Field(gt=0, le=1000)] = 1
    """Agents that share a worker process, and its copy of the base model; neighbours with different models never do."""
    cpus_per_worker: Annotated[int, Field(gt=0, le=1024)] = 1
    """Threads of a worker, and CPUs that Ray reserves for it. With `sweep --runtime ray`: of a run."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=64), AfterValidator(_whole_above_one)] = 0
    """GPUs that Ray reserves for a worker, such as 0.5 or 2; 0: it computes on the CPU. With `sweep --runtime ray`: for
    a run."""
    round_timeout: Seconds = 600.0
    """Seconds to wait for an agent: for its answers, its scores, or its message of one gossip round. Who is slower is
    lost."""
    lost: Literal["stop", "continue", "wait"] = "stop"
    """If an agent's process ends or is too slow. stop: the run stops and can be resumed; continue: the others go on
    without it, and it comes back at the start of an iteration once it has loaded its models again; wait: the others
    wait for it."""
    private_rewards: bool = False
    """Rewards of single answers and reward cards stay in the agent's worker; the driver learns the mean of each update
    and the reward model's name."""


class Config(Section):
    """One experiment."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    iterations: PositiveInt
    """Each iteration plays `dialogues` dialogues and makes turns / actor.turns_per_update updates."""
    dialogues: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Dialogues played in parallel."""
    dialogues_per_question: PositiveInt = 1
    """How many start with the same question; divides `dialogues`. Above 1, actor.baseline compares only these."""
    turns: Annotated[int, Field(gt=0, le=1000)] = 3
    """Turns of each dialogue."""
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """γ."""
    terminal: Literal["zero", "restart"] = "zero"
    """After the last turn the target is the reward alone (zero) or bootstraps from the first state (restart)."""
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    agents: Annotated[list[AgentConfig], Field(min_length=1)]
    reward: RewardConfig = RewardConfig()
    cooperation: CooperationName = "gossip"
    """gossip: the paper's algorithm. Baselines: independent (own rewards, no gossip), centralised (all learn from the
    mean reward, as Algorithm 3), minimum (all learn from the smallest reward), placebo (gossip, but all rewards are 0).
    """
    generation: GenerationConfig = GenerationConfig()
    prompts: Prompts = FixedPrompt()
    controller: Controller = SharedController()
    topology: TopologyConfig = TopologyConfig()
    critic: CriticConfig = CriticConfig()
    actor: ActorConfig = ActorConfig()
    checkpoint_every: PositiveInt = 5
    """Iterations between checkpoints; the last one is always kept."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept. If the newest is damaged, --resume uses the one before."""
    validation: ValidationConfig | None = None
    """Held-out questions during training; null = none."""
    best_metric: Literal["reward_scaled", "reward_raw", "held_out"] = "reward_scaled"
    """The checkpoint with the highest value is kept too; its adapters are in best/. held_out (the default with a
    validation section): mean over the judges of the team's answers to the held-out questions; evaluate, export and the
    Python API then use best/. The others: mean over agents and the iterations since the previous checkpoint."""
    stop_after_skipped: PositiveInt = 10
    """The run stops (resumable) after so many updates in a row with a skipped, non-finite step."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Also send the metrics to this tracker."""
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        """Defaults that depend on other keys.

        `prompts` with only a question is fixed; `controller` without kind and model is shared; best_metric is held_out
        with a validation section.
        """
        if not isinstance(content, dict):
            return content
        for key, tag, default, elsewhere in _DEFAULT_KINDS:
            section = content.get(key)
            if isinstance(section, dict) and tag not in section and not elsewhere & section.keys():
                content = content | {key: {tag: default} | section}
        if content.get("validation") is not None and "best_metric" not in content:
            content = content | {"best_metric": "held_out"}
        return content

    @property
    def workers(self) -> list[list[int]]:
        """The agents in each worker process: consecutive ones with one base model; none if they live in this one."""
        if self.runtime.kind == "local":
            return []
        each, found = self.runtime.agents_per_worker, []
        for _, same in groupby(range(len(self.agents)), self.model_of):
            numbers = list(same)
            found += [numbers[first : first + each] for first in range(0, len(numbers), each)]
        return found

    @property
    def n_workers(self) -> int:
        """Worker processes that the agents live in; 0 if they live in this one."""
        return len(self.workers)

    def model_of(self, agent: int) -> ModelConfig:
        """The agent's base model."""
        return self.agents[agent].model or self.model

    @property
    def by_model(self) -> list[list[int]]:
        """The agents, grouped by base model."""
        found: list[list[int]] = []
        for agent in range(len(self.agents)):
            same = [group for group in found if self.model_of(group[0]) == self.model_of(agent)]
            if same:
                same[0].append(agent)
            else:
                found.append([agent])
        return found

    def has_own_model(self, agent: int) -> bool:
        """Whether the agent's base model is another than the reference model."""
        return self.model_of(agent) != self.model

    def over_reference_model(self) -> "Config":
        """The config as if no agent had a base model of its own."""
        return self.model_copy(update={"agents": [agent.model_copy(update={"model": None}) for agent in self.agents]})

    @property
    def names(self) -> list[str]:
        """Name of each agent."""
        return [agent.name or f"agent {i}" for i, agent in enumerate(self.agents)]

    def generation_of(self, agent: int) -> GenerationConfig:
        """How an agent generates answers."""
        own = self.agents[agent].generation.model_dump(exclude_none=True)
        return self.generation.model_copy(update=own)

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if taken := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"agents: two are named {taken[0]!r}; names must differ")
        if self.turns % self.actor.turns_per_update:
            raise ValueError(
                f"actor.turns_per_update: {self.actor.turns_per_update} does not divide turns ({self.turns})"
            )
        if self.dialogues % self.dialogues_per_question:
            raise ValueError(
                f"dialogues_per_question: {self.dialogues_per_question} does not divide dialogues ({self.dialogues})"
            )
        if self.dialogues_per_question > 1 and isinstance(self.prompts, FixedPrompt):
            raise ValueError("dialogues_per_question: all dialogues ask the fixed question; leave it at 1")
        if self.actor.kl_target is not None and self.actor.kl_coefficient == 0:
            raise ValueError("actor.kl_coefficient: kl_target multiplies it, so it must start above 0")
        if self.actor.entropy_band is not None and not self.actor.entropy_band[0] < self.actor.entropy_band[1]:
            low, high = self.actor.entropy_band
            raise ValueError(f"actor.entropy_band: [{low:g}, {high:g}] is empty; give [low, high] with low < high")
        if self.best_metric == "held_out" and self.validation is None:
            raise ValueError("best_metric: held_out needs a validation section")
        if self.actor.credit == "local" and not SIGNALS[self.actor.signal].has_reward:
            raise ValueError(
                f"actor.credit: local needs a signal with an immediate reward; for {self.actor.signal} use consensus"
            )
        if self.actor.credit == "local":
            if self.reward.of != "response":
                raise ValueError(
                    f"actor.credit: local leaves out the other agents' rewards, which depend on this agent's response "
                    f"with reward.of {self.reward.of}; use consensus"
                )
            if COOPERATIONS[self.cooperation].shares:
                raise ValueError(
                    f"actor.credit: local needs a reward of the agent's own; with cooperation {self.cooperation} all "
                    "share one; use consensus"
                )
        for i, agent in enumerate(self.agents):
            if self.has_own_model(i) and self.runtime.kind == "local":
                raise ValueError(
                    f"agents.{i}.model: agents in one process are stacked on one base model; use runtime.kind ray"
                )
            if agent.model is not None and (agent.model.dtype == "float64") != (self.model.dtype == "float64"):
                raise ValueError(
                    f"agents.{i}.model.dtype: {agent.model.dtype} does not go with model.dtype {self.model.dtype}: "
                    "float64 is for all models or none, because critics are exchanged in it"
                )
        if self.topology.masked and not COOPERATIONS[self.cooperation].gossips:
            raise ValueError(f"topology.masked: with cooperation {self.cooperation} nothing is gossiped; use false")
        if self.topology.masked and self.topology.gossip_rounds == 0:
            raise ValueError("topology.masked: with gossip_rounds 0 nothing is gossiped; use false, or more rounds")
        if self.topology.masked and len(self.agents) < 3:
            raise ValueError(
                f"topology.masked: hides nothing with {len(self.agents)} agents, since a neighbour knows its masks; "
                "use false, or at least 3 agents"
            )
        if self.runtime.kind == "ray" and COOPERATIONS[self.cooperation].shares:
            raise ValueError(
                f"cooperation: {self.cooperation} needs everyone's rewards in one place; use runtime.kind local"
            )
        if self.runtime.kind == "ray" and self.validation is not None:
            if self.runtime.lost == "continue":
                raise ValueError("validation: needs the answers of all agents; set runtime.lost to stop or wait")
            if self.runtime.private_rewards:
                raise ValueError(
                    "validation: needs to know the agents' reward cards, since its judges must train nobody; set "
                    "runtime.private_rewards to false"
                )
        if critic_kind(self.actor.signal) == "none":
            if self.actor.turns_per_update != self.turns:
                raise ValueError(
                    f"actor.turns_per_update: signal {self.actor.signal} needs whole dialogues: {self.turns} (turns), "
                    f"not {self.actor.turns_per_update}"
                )
            if self.terminal == "restart":
                raise ValueError(f"terminal: restart needs a critic; signal {self.actor.signal} has none; use zero")
        return self
