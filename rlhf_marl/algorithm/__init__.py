"""The algorithm, on tensors alone: any leading batch dimensions, agents on the axis before the last.

topology.py  graphs, consensus matrices, Assumption 5.1     gossip.py  A^t, disagreement, bytes sent
network.py   Eq. (5)     critic.py  Algorithm 2             actor.py   Algorithm 1's signals, credit and step
"""

from rlhf_marl.algorithm.actor import (
    CREDITS,
    SIGNALS,
    actor_signal,
    critic_kind,
    leave_one_out,
    normalised_step,
    td_error,
)
from rlhf_marl.algorithm.critic import Critic, CriticMetrics, Transition, project_to_ball
from rlhf_marl.algorithm.mixing import consensus_power, disagreement, gossip, gossip_bytes
from rlhf_marl.algorithm.network import Linear, Network, project, random_projection, value_and_gradient
from rlhf_marl.algorithm.topology import (
    GRAPHS,
    MATRICES,
    adjacency,
    check_consensus_matrix,
    consensus_matrix,
    is_connected,
    smallest_weight,
    spectral_gap,
)

__all__ = [
    "CREDITS",
    "GRAPHS",
    "MATRICES",
    "SIGNALS",
    "Critic",
    "CriticMetrics",
    "Linear",
    "Network",
    "Transition",
    "actor_signal",
    "adjacency",
    "check_consensus_matrix",
    "consensus_matrix",
    "consensus_power",
    "critic_kind",
    "disagreement",
    "gossip",
    "gossip_bytes",
    "is_connected",
    "leave_one_out",
    "normalised_step",
    "project",
    "project_to_ball",
    "random_projection",
    "smallest_weight",
    "spectral_gap",
    "td_error",
    "value_and_gradient",
]
