"""The content of evaluation.json. Numbers are finite or null; keys that are not listed are ignored."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VERSION = 3  # raise it when the meaning of a key changes
Number = Annotated[float, Field(allow_inf_nan=False)]
Grid = list[list[Number | None]]
_GRIDS = ("base", "trained", "difference", "low", "high")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Metric(_Part):
    """Means over questions for the base model and the trained agent, and their paired difference."""

    base: Number
    trained: Number
    difference: Number
    """trained - base."""
    low: Number | None
    """Of the difference's interval; null for fewer than two questions."""
    high: Number | None
    n: int
    """Questions."""


class WinRate(_Part):
    """Share of questions on which the trained answer beats the base model's; ties count half."""

    rate: Number
    low: Number | None
    high: Number | None
    n: int
    judge: str
    """What decided: a pairwise chat judge, or the mean of the held-out judges."""
    position_consistent: Number | None
    """Share of pairs on which a pairwise judge prefers the same answer in both orders."""


class Mean(_Part):
    """Mean over questions, of the trained agent alone."""

    mean: Number
    low: Number | None
    high: Number | None


class Speaker(_Part):
    """Metrics of an agent or the team."""

    verdict: str
    own_reward: Metric
    """Scaled; for the team the mean over all agents' reward models."""
    held_out_reward: Metric | None
    """Mean of the held-out judges, each in standard deviations of its scores of base answers."""
    win_rate: WinRate | None
    length: Metric
    """Tokens per answer."""
    distinct_1: Metric
    distinct_2: Metric
    self_repetition: Metric
    refusal_harmful: Metric | None
    refusal_harmless: Metric | None


class Agent(Speaker):
    agent: int
    reward_model: str
    kl_to_base: Mean
    """Nats per token."""
    entropy: Metric
    """Nats per token."""
    truncated: Metric
    """Share of answers cut at the token limit."""


class AgainstSingle(_Part):
    """The trained team's answer against one answer of the base model."""

    own_reward: Metric
    held_out_reward: Metric | None


class Team(Speaker):
    against_single: AgainstSingle


class Settings(_Part):
    """What was evaluated, and how."""

    questions: str
    """The question file, as given."""
    questions_sha256: str
    n_questions: int
    n_dialogues: int
    turns: int
    """Turns of questions without follow-ups."""
    seed: int
    max_new_tokens: int
    temperature: Number
    rlhf_marl: str
    """Version of the package."""
    asked: dict[str, Any]
    """The options, as given."""
    judge: str | None
    """Card of the pairwise chat judge."""
    judges: dict[str, str]
    """Digest of each scorer's card, by name."""
    cards: dict[str, Any]
    """Digests of the agents' own cards, and of each requested card."""
    agents: Literal["best", "last"] = "last"
    """The best adapters of the run, or the last."""
    adapters: str
    """Source of the adapters: `adapters`, `best`, or a checkpoint."""
    adapters_sha256: str | None
    checkpoint_sha256: str | None
    confidence: Annotated[float, Field(gt=0, lt=1)]
    """Level of all intervals."""
    resamples: int
    """Bootstrap resamples."""
    seconds: Number


class Judge(_Part):
    name: str
    trained_agents: list[int]
    """Agents trained with it; empty if it is held out."""


class CrossRewards(_Part):
    """Every judge on every speaker: a Metric's numbers as tables [row][judge]."""

    judges: list[Judge]
    rows: list[str]
    """`agent 0`, ..., `team`."""
    base: Grid
    trained: Grid
    difference: Grid
    low: Grid
    high: Grid

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for key in _GRIDS:
            grid = getattr(self, key)
            if len(grid) != len(self.rows) or any(len(row) != len(self.judges) for row in grid):
                raise ValueError(f"{key} is not a table of {len(self.rows)} rows and {len(self.judges)} judges")
        return self


class OneKind(_Part):
    """Metrics on the questions of one kind, one per agent."""

    n: int
    own_reward: list[Metric | None]
    refusal: list[Metric | None]


class Summary(_Part):
    """What is measured: the result of `summarise`."""

    agents: list[Agent]
    team: Team
    held_out_judges: list[str]
    """The judges in held_out_reward, which excludes judges that score all base answers alike."""
    cross_rewards: CrossRewards
    agreement: Metric | None
    """Overlap of the agents' words; null for one agent."""
    controller_fallbacks: Metric
    """Share of turns in which the controller gave no usable output."""
    by_kind: dict[str, OneKind]
    """Kinds of questions: see questions.py."""


class Numbers(Summary):
    """All of evaluation.json."""

    version: int
    settings: Settings
    warnings: list[str]
