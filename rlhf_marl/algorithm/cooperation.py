"""Whose rewards an agent learns from: the paper's cooperation by gossip, and the baselines it is compared with.

To add one, add an entry to COOPERATIONS. This module does not import torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cooperation:
    """One entry of the registry.

    Attributes:
        rewards: each agent's own rewards (N, B) -> the rewards it learns from (N, B).
        gossips: whether critics, TD errors and step scales are exchanged.
        shares: whether the agents learn from one common reward; then there is no own share for `local` credit.
    """

    rewards: "Callable[[Tensor], Tensor]"
    gossips: bool = False
    shares: bool = False


COOPERATIONS: dict[str, Cooperation] = {
    "gossip": Cooperation(lambda reward: reward, gossips=True),
    "independent": Cooperation(lambda reward: reward),
    "centralised": Cooperation(lambda reward: reward.mean(0, keepdim=True).expand_as(reward), shares=True),
    "minimum": Cooperation(lambda reward: reward.amin(0, keepdim=True).expand_as(reward), shares=True),
    "placebo": Cooperation(lambda reward: reward * 0, gossips=True),
}
