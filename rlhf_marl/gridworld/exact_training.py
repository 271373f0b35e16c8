"""Algorithm 1 for two agents with nothing sampled: every actor follows the exact gradient of J.

    run: [ policies on all states -> exact gradient of J -> normalised step (line 17) -> gossip of actors ]*

This is the limit of many actor samples with an exact critic. What such a run does not reach is lost neither to the
critic, nor to its gossip, nor to sampling: only to where the ascent of the policies ends.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rlhf_marl.algorithm.actor import normalised_step
from rlhf_marl.algorithm.mixing import consensus_power
from rlhf_marl.algorithm.network import Network
from rlhf_marl.gridworld.diagnostics import exact_weights
from rlhf_marl.gridworld.draws import Draws
from rlhf_marl.gridworld.encoding import encode_actor
from rlhf_marl.gridworld.exact import policy_values, reward_table
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE, N_ACTIONS, N_CELLS
from rlhf_marl.gridworld.training import Critics, History, Policies

_STATES = np.stack(np.divmod(np.arange(N_CELLS**2), N_CELLS), axis=-1)  # (4225, 2)


def ascend(
    s: Setting, draws: Draws, points: Sequence[int], progress: Callable[[int], None] = lambda iterations: None
) -> History:
    """As `train`, of a setting with direction exact. reward is J; what belongs to critics or samples is 0 or NaN."""
    network = Network(s.width, s.depth, generator=torch.Generator())
    x = torch.as_tensor(np.stack([encode_actor(_STATES, i) for i in range(2)]), dtype=torch.float32)
    shapes = [array.shape[2:] for array in (draws.actor_h, draws.actor_w, draws.actor_b)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    power = consensus_power(torch.as_tensor(draws.matrix), s.gossip_rounds).float()
    arrays = (torch.as_tensor(array, dtype=torch.float32) for array in (draws.actor_h, draws.actor_w, draws.actor_b))
    parameters = torch.cat([array.flatten(2) for array in arrays], dim=-1)  # (S, 2, n)
    team = reward_table(draws.landmarks)

    def log_policies(row: torch.Tensor) -> torch.Tensor:
        """One seed's, (2, n) -> (2, 4225, 5): agent, state, own action."""
        h, w, b = (part.unflatten(-1, shape) for part, shape in zip(row.split(sizes, -1), shapes, strict=True))
        return torch.log_softmax(network.hidden(w.flatten(1), x @ h) @ b.mT, dim=-1)

    def table(log: torch.Tensor) -> np.ndarray:
        """(2, 65, 65, 5): agent, own cell, other agent's cell, action."""
        found = log.detach().exp().double().numpy().reshape(2, N_CELLS, N_CELLS, N_ACTIONS)
        return np.stack([found[0], found[1].swapaxes(0, 1)])

    rows: list[dict[str, np.ndarray]] = []
    snapshots = []
    for t in range(points[-1]):
        rate = s.actor_step_size / (t + 1 if s.actor_schedule == "inverse" else 1)
        for seed in range(len(parameters)):
            leaf = parameters[seed].clone().requires_grad_()
            with torch.enable_grad():
                log = log_policies(leaf)
                weights = exact_weights(team[seed], table(log))
                direction = torch.as_tensor(weights.reshape(2, -1, N_ACTIONS), dtype=log.dtype)
                (gradient,) = torch.autograd.grad((direction * log).sum(), leaf)
            parameters[seed] = normalised_step(leaf.detach(), gradient, rate)
        if s.actors == "gossiped":
            parameters = power @ parameters
        progress(1)
        if t + 1 in points:
            h, w, b = (
                part.unflatten(-1, shape).numpy().copy()
                for part, shape in zip(parameters.split(sizes, -1), shapes, strict=True)
            )
            snapshots.append(Policies(h, w, b))
            logs = [log_policies(row) for row in parameters]
            rows.append(
                {
                    "reward": policy_values(team, np.stack([table(log) for log in logs]), EPISODE),
                    "entropy": np.array([float(-(log.exp() * log).sum(-1).mean()) for log in logs]),
                }
            )
    found = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
    nothing, unknown = np.zeros_like(found["reward"]), np.full_like(found["reward"], np.nan)
    weights = draws.critic_w[:, None].repeat(2, axis=1)
    return History(
        points=np.asarray(points),
        value=unknown,
        positive=unknown,
        projected=nothing,
        skipped=nothing,
        dead=nothing,
        dead_actors=nothing,
        disagreement_before=nothing,
        disagreement_after=nothing,
        distance=unknown,
        policies=snapshots,
        critics=Critics(weights, weights),
        **found,
    )
