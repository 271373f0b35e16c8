"""Actor signals: the scalar that weights agent i's score function ∇log π^i (Algorithm 1, lines 12 to 16).

The paper's δ = Q(s, a) - r - γ Q(s', a') is right for the critic's descent but has the wrong sign for the actor's
ascent: the advantage is -δ. See docs/algorithm.md for the choice of signals.

To add a signal, add an entry to SIGNALS. This module does not import torch, so configs can be checked without it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf_marl.algorithm.mixing import Mixer


@dataclass(frozen=True, slots=True)
class Values:
    """Inputs of a signal. Each broadcasts to (..., n_agents, batch) and is specific to the agent.

    Attributes:
        value, next_value: the critic at (s) or (s, a), and at its successor. Without a critic, 0 and the return that
            followed.
        reward: r^i. discount: γ, or 0 at terminal states.
        counterfactual_value: Q averaged over the agent's own actions; None if actions cannot be enumerated.
    """

    value: "Tensor"
    next_value: "Tensor"
    reward: "Tensor"
    discount: "Tensor"
    counterfactual_value: "Tensor | None" = None


Credit = Callable[[Values, "Mixer"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One entry of the registry.

    Attributes:
        critic: the kind of critic it needs: Q of (s, a), V of (s), or none.
        function: (values, mixer, credit) -> (..., n_agents, batch). `credit` computes the advantage.
        has_reward: whether it includes the immediate reward; `local` credit is meaningful only then.
        enumerates: whether it needs enumerable actions, as in the grid world.
    """

    critic: Literal["q", "v", "none"]
    function: Callable[[Values, "Mixer", Credit], "Tensor"]
    has_reward: bool = True
    enumerates: bool = False


def td_error(value: "Tensor", reward: "Tensor", next_value: "Tensor", discount: "Tensor") -> "Tensor":
    """δ = Q(s, a) - r - γ Q(s', a'), the paper's sign. All (..., n_agents, batch)."""
    return value - reward - discount * next_value


def consensus_credit(v: Values, mixer: "Mixer") -> "Tensor":
    """Lines 12 to 15: minus the gossiped δ; the batch replaces the M columns."""
    return -mixer.mix(td_error(v.value, v.reward, v.next_value, v.discount))


def local_credit(v: Values, mixer: "Mixer") -> "Tensor":
    """r^i / N + gossip(γ V(s') - V(s)); without gossip, r^i has full weight.

    Given the state, the other agents' immediate rewards do not depend on agent i's action. Omitting them keeps the
    mean gradient and reduces its variance. The own reward's weight is its share of the team's mean, whatever the number
    of gossip rounds.
    """
    return mixer.own_share * v.reward + mixer.mix(v.discount * v.next_value - v.value)


CREDITS: dict[str, Credit] = {"consensus": consensus_credit, "local": local_credit}


def _advantage(v: Values, mixer: "Mixer", credit: Credit) -> "Tensor":
    return credit(v, mixer)


def _literal(v: Values, mixer: "Mixer", credit: Credit) -> "Tensor":
    """The gossiped δ, as printed in the paper."""
    return -credit(v, mixer)


def _own_value(v: Values, mixer: "Mixer", credit: Credit) -> "Tensor":
    """The agent's own Q (Remark 1), without gossip of TD errors."""
    return v.value


def _counterfactual(v: Values, mixer: "Mixer", credit: Credit) -> "Tensor":
    """Q minus its mean over the agent's own actions."""
    if v.counterfactual_value is None:
        raise ValueError("signal: counterfactual needs actions that can be enumerated")
    return v.value - v.counterfactual_value


SIGNALS: dict[str, Signal] = {
    "td_q_literal": Signal("q", _literal),
    "td_q": Signal("q", _advantage),
    "td_v": Signal("v", _advantage),
    "return": Signal("none", _advantage),
    "q_value": Signal("q", _own_value, has_reward=False),
    "counterfactual": Signal("q", _counterfactual, has_reward=False, enumerates=True),
}


def critic_kind(signal: str) -> Literal["q", "v", "none"]:
    """The kind of critic that a signal needs."""
    return SIGNALS[signal].critic


def actor_signal(signal: str, credit: str, mixer: "Mixer", values: Values) -> "Tensor":
    """The named signal with the named credit: (..., n_agents, batch).

    Raises:
        ValueError: unknown signal or credit, or local credit for a signal without an immediate reward.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal: {signal!r} is not an actor signal; choose {', '.join(SIGNALS)}")
    if credit not in CREDITS:
        raise ValueError(f"credit: {credit!r} is not a credit; choose {', '.join(CREDITS)}")
    chosen = SIGNALS[signal]
    if credit == "local" and not chosen.has_reward:
        raise ValueError(f"credit: local needs a signal with an immediate reward; {signal} has none")
    return chosen.function(values, mixer, CREDITS[credit])
