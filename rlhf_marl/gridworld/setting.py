"""Settings of one grid-world experiment: the inputs of Algorithm 1."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlhf_marl.algorithm.signals import SIGNALS
from rlhf_marl.config.schema import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    registered,
)
from rlhf_marl.gridworld.compiled_layout import SIGNAL_CODES
from rlhf_marl.gridworld.spread import N_CELLS

SignalName: Any = registered(lambda: SIGNAL_CODES)
Finite = Annotated[float, Field(allow_inf_nan=False)]


def _tuples(value: Any) -> Any:
    """Turn YAML lists into hashable tuples: settings serve as keys."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


class Setting(Section):
    """Defaults are the numbers and formulas printed in the paper and its appendix D.1."""

    n_agents: Annotated[int, Field(ge=1, le=N_CELLS)] = 2
    """N, also the number of landmarks."""
    iterations: PositiveInt = 20_000
    """T of Algorithm 1. An iteration takes K + M - 1 environment steps."""
    critic_steps: PositiveInt = 1
    """K of Algorithm 2."""
    actor_samples: PositiveInt = 1
    """M of Algorithm 1. The first is the critic's last sample (Algorithm 2 passes s_{K-1} on)."""
    discount: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """γ."""
    width: PositiveInt = 20
    """m of Eq. (5), for critics and actors."""
    depth: PositiveInt = 5
    """D of Eq. (5), for critics and actors."""
    actor_step_size: NonNegativeFloat = 0.005
    """α; the length of line 17's normalised step."""
    actor_schedule: Literal["constant", "inverse"] = "constant"
    """inverse: α_t = α / t, as in Theorem 5.10, t from 1."""
    actor_output_scale: PositiveFloat = 1.0
    """Multiplies the actor's initial b. At the paper's 1.0, logits spread like N(0, 2m): nearly deterministic."""
    critic_step_size: PositiveFloat = 0.001
    """β."""
    critic_output_scale: PositiveFloat = 1.0
    """Multiplies the critic's b. At the paper's 1.0, initial values spread like N(0, 2m)."""
    radius: PositiveFloat | None = 10.0
    """B of Algorithm 2, line 8; null = no projection."""
    start: Literal["warm", "restart"] = "restart"
    """Where Algorithm 2 begins. restart: W(0), as printed; warm: the last gossiped weights."""
    average: bool = True
    """Line 9's running average."""
    critic: Literal["deep", "linear", "exact"] = "deep"
    """linear: Q = wᵀx with w(0) = 0, the function class of Zhang 2018, Chen 2022 and Hairi 2022. exact: no critic but
    V of the current policies by dynamic programming, for two agents and signal td_v."""
    direction: Literal["sampled", "exact"] = "sampled"
    """exact: line 16's expectation over all states and actions instead of M samples; needs critic exact."""
    actors: Literal["own", "gossiped"] = "own"
    """gossiped (ours): actors start from equal weights and gossip them after line 17, as critics do."""
    control: Literal["decentralised", "centralised"] = "decentralised"
    """centralised: Algorithm 3, one critic of the mean reward, used by all actors."""
    yardstick: bool = False
    """Run Algorithm 3 beside the decentralised critics on the same samples, and log the distance."""
    signal: SignalName = "td_q_literal"
    """Weight of the score function; see docs/algorithm.md."""
    credit: Literal["consensus", "local"] = "consensus"
    split: Literal["shared", "closest", "owned"] = "shared"
    """How the team reward is divided; see spread.py."""
    reward_shift: Finite = 0.0
    reward_scale: PositiveFloat = 1.0
    """Agents learn from (r + reward_shift) * reward_scale."""
    reset: Literal["periodic", "restart_kernel"] = "periodic"
    """periodic: new positions every 10 steps; restart_kernel: with probability 1 - γ at each step (section 3.1)."""
    bootstrap: Literal["reached", "redrawn", "none"] = "redrawn"
    """Next state of the TD target when positions are redrawn: the one reached, the redrawn one, or none."""
    graph: Literal["complete", "ring", "star", "grid", "exponential", "random", "explicit"] = "complete"
    edges: Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...] | None, BeforeValidator(_tuples)] = None
    """Pairs of agents, for `graph: explicit`."""
    matrix: Literal["sinkhorn", "metropolis_hastings", "uniform", "given"] = "sinkhorn"
    weights: Annotated[tuple[tuple[Finite, ...], ...] | None, BeforeValidator(_tuples)] = None
    """The consensus matrix, for `matrix: given`."""
    laziness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of the identity mixed into the consensus matrix."""
    edge_probability: Fraction = 0.5
    gossip_rounds: NonNegativeInt = 10

    @model_validator(mode="after")
    def _fits_together(self) -> "Setting":
        if self.credit == "local" and not SIGNALS[self.signal].has_reward:
            raise ValueError(f"credit: local needs a signal with an immediate reward; {self.signal} has none")
        if self.control == "centralised" and self.credit == "local":
            raise ValueError("credit: local is about the agents' own rewards; control centralised has the mean alone")
        if self.control == "centralised" and self.actors == "gossiped":
            raise ValueError("actors: gossiped needs control decentralised; Algorithm 3 does not gossip")
        if self.critic == "exact" and (self.n_agents != 2 or self.signal != "td_v" or self.yardstick):
            raise ValueError("critic: exact is there for two agents with signal td_v, without a yardstick")
        if self.direction == "exact" and self.critic != "exact":
            raise ValueError("direction: exact needs critic exact")
        if self.control == "centralised" and self.yardstick:
            raise ValueError("yardstick: is Algorithm 3 itself; use it with control decentralised")
        return self

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration of Algorithm 1."""
        return self.critic_steps + self.actor_samples - 1
