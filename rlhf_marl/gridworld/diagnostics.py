"""Errors of critics and actors against exact dynamic programming, for two agents.

All numbers are exact expectations, over the states that the current policies visit and over all joint actions.
A seed's tables have the axes (agent 0's cell, agent 1's cell), then (agent 0's action, agent 1's action).

Exact values are those of chain.py, as a critic cannot see the age of an episode.
"""

import numpy as np
import torch
from scipy.sparse import csr_matrix

from rlhf_marl.algorithm.mixing import consensus_power, own_share
from rlhf_marl.algorithm.network import Network
from rlhf_marl.algorithm.signals import SIGNALS, critic_kind
from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.chain import Chain, chain
from rlhf_marl.gridworld.draws import Draws
from rlhf_marl.gridworld.encoding import encode_actor, encode_critic
from rlhf_marl.gridworld.exact import reward_table
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE, N_ACTIONS, N_CELLS, NEXT_CELL, local_rewards
from rlhf_marl.gridworld.training import Critics, Policies, policy_table

_BOARD = (N_CELLS, N_CELLS)
_STATES = np.stack(np.divmod(np.arange(N_CELLS**2), N_CELLS), axis=-1)  # (4225, 2)
_JOINT = np.stack(np.divmod(np.arange(N_ACTIONS**2), N_ACTIONS), axis=-1)  # (25, 2)
_NEXT = (NEXT_CELL[:, None, :, None], NEXT_CELL[None, :, None, :])  # next cells by state and joint action
_TARGETS = np.ravel_multi_index(np.broadcast_arrays(*_NEXT), _BOARD)  # (65, 65, 5, 5)
_TOLERANCE = 1e-9


def joint(table: np.ndarray) -> np.ndarray:
    """π(a|s) of all joint actions from a policy table (2, 65, 65, 5): (65, 65, 5, 5)."""
    return table[0][..., :, None] * table[1].swapaxes(0, 1)[..., None, :]


def transitions(table: np.ndarray) -> csr_matrix:
    """P(s' | s) between resets, (4225, 4225)."""
    starts = np.arange(0, _TARGETS.size + 1, len(_JOINT))
    return csr_matrix((joint(table).ravel(), _TARGETS.ravel(), starts), shape=(len(_STATES), len(_STATES)))


def visits(table: np.ndarray, s: Setting) -> np.ndarray:
    """ν(s): visit frequency of each state under the policies, (65, 65); sums to 1."""
    move = transitions(table).T
    now = np.full(len(_STATES), 1 / len(_STATES))
    if s.reset == "periodic":
        steps = [now]
        for _ in range(EPISODE - 1):
            steps.append(move @ steps[-1])
        return np.mean(steps, axis=0).reshape(_BOARD)
    # ν = (1 - γ) Σ γ^t P^t (Lemma 4.2)
    return _solve(move, s.discount, (1 - s.discount) * now).reshape(_BOARD)


def _solve(matrix: csr_matrix, factor: float, right: np.ndarray) -> np.ndarray:
    """Solve x = factor matrix x + right."""
    # Krylov methods stall on nearly deterministic policies.
    x = right
    while True:
        following = factor * (matrix @ x) + right
        change = np.abs(following - x).max()
        x = following
        if not change > _TOLERANCE * (1 - factor) * np.abs(x).max():  # NaN ends the loop too
            return x


def exact_state_value(rewards: np.ndarray, table: np.ndarray, c: Chain) -> np.ndarray:
    """V of the policies, (65, 65). rewards: of the state reached, as critics receive them, (65, 65)."""
    move = transitions(table)
    value = _solve(move, c.stay, move @ rewards.ravel())  # without `leave`, which only adds a constant
    # V = U + leave V̄ / (1 - stay), and so V̄ = Ū + leave V̄ / (1 - stay)
    mean = value.mean() * (1 - c.stay) / (1 - c.stay - c.leave)
    return (value + c.leave * mean / (1 - c.stay)).reshape(_BOARD)


def backed_up(rewards: np.ndarray, value: np.ndarray, c: Chain) -> np.ndarray:
    """E[r + γ V(s') | s, a]: (65, 65) -> (65, 65, 5, 5)."""
    return (rewards + c.stay * value)[_NEXT] + c.leave * value.mean()


def critic_tables(s: Setting, draws: Draws, critics: Critics, seed: int) -> np.ndarray:
    """A seed's critics on all states: V (C, 65, 65) or Q (C, 65, 65, 5, 5)."""
    shape: tuple[int, ...] = _BOARD
    if critic_kind(s.signal) == "v":
        x = encode_critic(_STATES)
    else:
        x = encode_critic(
            _STATES[:, None].repeat(len(_JOINT), 1), np.broadcast_to(_JOINT, (len(_STATES), *_JOINT.shape))
        )
        x, shape = x.reshape(-1, x.shape[-1]), (*_BOARD, N_ACTIONS, N_ACTIONS)
    w = critics.w[seed]
    if s.critic == "linear":
        values = np.einsum("cd,xd->cx", w.reshape(len(w), -1), x)
    else:
        hidden = torch.as_tensor((x @ draws.critic_h[seed]).astype(w.dtype))
        network = Network(s.width, s.depth, generator=torch.Generator())
        network.b = torch.as_tensor(draws.critic_b[seed : seed + 1].astype(w.dtype))
        values = network.forward(torch.as_tensor(w).flatten(1), hidden[None]).numpy()
    return values.reshape(len(w), *shape).astype(float)


def critic_quality(estimate: np.ndarray, exact: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Root mean square error and correlation under weights that sum to 1; arguments of equal shape.

    The correlation of a constant is 0.
    """
    difference = estimate - exact
    a, b = estimate - (weights * estimate).sum(), exact - (weights * exact).sum()
    spread = np.sqrt((weights * a**2).sum() * (weights * b**2).sum())
    correlation = (weights * a * b).sum() / spread if spread > 0 else 0.0
    return float(np.sqrt((weights * difference**2).sum())), float(correlation)


def bellman_error(estimate: np.ndarray, rewards: np.ndarray, table: np.ndarray, nu: np.ndarray, c: Chain) -> float:
    """MSBE of Eq. (6): E[(Q - T^π Q)^2], or with V, under the visit frequencies."""
    pi = joint(table)
    if estimate.ndim == 2:
        target = (pi * backed_up(rewards, estimate, c)).sum((-2, -1))
        return float((nu * (estimate - target) ** 2).sum())
    target = backed_up(rewards, (pi * estimate).sum((-2, -1)), c)
    return float((nu[..., None, None] * pi * (estimate - target) ** 2).sum())


def actor_weights(
    s: Setting, estimates: np.ndarray, rewards: np.ndarray, power: np.ndarray, table: np.ndarray, nu: np.ndarray
) -> np.ndarray:
    """Mean weight of ∇log π^i(a^i | s) in line 16, times the frequency of (s, a^i): (2, 65, 65, 5).

    Axes: agent, agent 0's cell, agent 1's cell, the agent's own action.

    Args:
        estimates: the agents' critics, (2, 65, 65) or (2, 65, 65, 5, 5); a single one with Algorithm 3.
        rewards: each critic's reward in the state reached, (2 or 1, 65, 65).
        power: A^t_gossip, (2, 2) or (1, 1).
    """
    pi, c = joint(table), chain(s)
    if not SIGNALS[s.signal].has_reward:
        signals = estimates
    else:
        reads_actions = critic_kind(s.signal) == "q"
        now = estimates if reads_actions else estimates[..., None, None]
        state = (pi * estimates).sum((-2, -1)) if reads_actions else estimates
        ahead = np.stack([backed_up(np.zeros(_BOARD), value, c) for value in state])
        paid = np.stack([reward[_NEXT] for reward in rewards])
        if s.credit == "local":
            signals = own_share(s.n_agents, s.gossip_rounds) * paid + np.tensordot(power, ahead - now, 1)
        else:
            signals = np.tensordot(power, paid + ahead - now, 1)
        if s.signal == "td_q_literal":
            signals = -signals
    result = []
    for i in range(2):
        signal = signals[i % len(signals)]
        if s.signal == "counterfactual":
            own_policy = table[0][..., :, None] if i == 0 else table[1].swapaxes(0, 1)[..., None, :]
            signal = signal - (own_policy * signal).sum(-2 + i, keepdims=True)
        result.append((nu[..., None, None] * pi * signal).sum(-1 if i == 0 else -2))  # over the other's action
    return np.stack(result)


def exact_weights(rewards: np.ndarray, table: np.ndarray) -> np.ndarray:
    """As `actor_weights`, for the exact gradient of J: mean reward per step of an episode from uniform positions."""
    pi, move = joint(table), transitions(table)
    ahead = [np.zeros(len(_STATES))]  # value of the last k steps
    for _ in range(EPISODE - 1):
        ahead.append(move @ (rewards.ravel() + ahead[-1]))
    now, total = np.full(len(_STATES), 1 / len(_STATES)), np.zeros(pi.shape)
    for rest in reversed(ahead):
        total += now.reshape(_BOARD)[..., None, None] * pi * (rewards + rest.reshape(_BOARD))[_NEXT]
        now = move.T @ now
    return np.stack([total.sum(-1), total.sum(-2)]) / EPISODE


def direction(s: Setting, policies: Policies, seed: int, weights: np.ndarray) -> np.ndarray:
    """Σ weights ∇log π^i per agent, flat: (2, n_params). weights: (2, 65, 65, 5) as in `actor_weights`."""
    network = Network(s.width, s.depth, generator=torch.Generator())
    leaves = [
        torch.as_tensor(a[seed], dtype=torch.float64).requires_grad_() for a in (policies.h, policies.w, policies.b)
    ]
    h, w, b = leaves
    x = torch.as_tensor(np.stack([encode_actor(_STATES, i) for i in range(2)]))
    with torch.enable_grad():
        logits = network.hidden(w.flatten(1), x @ h) @ b.mT  # (2, 4225, 5)
        loss = (torch.as_tensor(weights.reshape(2, -1, N_ACTIONS)) * torch.log_softmax(logits, -1)).sum()
        gradients = torch.autograd.grad(loss, leaves)
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per agent, (2, n_params) -> (2,); 0 where either is zero."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.where(lengths > 0, (a * b).sum(-1) / np.where(lengths > 0, lengths, 1), 0.0)


def diagnose(s: Setting, draws: Draws, policies: Policies, critics: Critics) -> dict[str, np.ndarray]:
    """Means over the agents (and their critics), per seed, (S,).

    critic_error: root mean square, in units of the agents' learning reward. critic_correlation: with the exact value of
    the mean reward. msbe: Eq. (6). cosine: between E[d], the mean direction of line 16 before line 17 normalises it,
    and the exact gradient of J.

    Raises:
        UsageError: the number of agents is not two.
    """
    if s.n_agents != 2:
        raise UsageError(f"diagnostics: {s.n_agents} agents; exact values are there for two")
    tables = policy_table(policies).astype(float)
    rows = [_diagnose_seed(s, draws, policies, critics, tables[seed], seed) for seed in range(len(tables))]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _diagnose_seed(
    s: Setting, draws: Draws, policies: Policies, critics: Critics, table: np.ndarray, seed: int
) -> dict[str, float]:
    c, nu = chain(s), visits(table, s)
    team = reward_table(draws.landmarks[seed])
    paid = (team + s.reward_shift) * s.reward_scale
    estimates = critic_tables(s, draws, critics, seed)[:2]
    exact = exact_state_value(paid, table, c)
    weights = nu
    if critic_kind(s.signal) == "q":
        exact, weights = backed_up(paid, exact, c), nu[..., None, None] * joint(table)
    quality = [critic_quality(estimate, exact, weights) for estimate in estimates]
    rewards, power = paid[None], np.ones((1, 1))
    if s.control == "decentralised":
        local = local_rewards(s.split, _STATES, draws.landmarks[seed][None])
        rewards = np.moveaxis((local + s.reward_shift) * s.reward_scale, -1, 0).reshape(2, *_BOARD)
        power = consensus_power(torch.as_tensor(draws.matrix[seed]), s.gossip_rounds).numpy()
    actual = direction(s, policies, seed, actor_weights(s, estimates, rewards, power, table, nu))
    best = direction(s, policies, seed, exact_weights(team, table))
    return {
        "critic_error": float(np.mean([error for error, _ in quality])),
        "critic_correlation": float(np.mean([correlation for _, correlation in quality])),
        "msbe": float(np.mean([bellman_error(estimate, paid, table, nu, c) for estimate in estimates])),
        "cosine": float(cosine(actual, best).mean()),
    }


def communication(s: Setting, draws: Draws) -> dict[str, np.ndarray]:
    """Communication of a whole run (Corollary 5.11), per seed, (S,).

    rounds: gossip rounds, 2 T t_gossip with a TD-error signal. messages: one agent's values to one neighbour. bytes:
    size of the messages, at 4 per number. Algorithm 3 has a centre instead of gossip, and counts as zero, as does what
    is exact.
    """
    n_seeds = len(draws.matrix)
    rounds = s.iterations * s.gossip_rounds * (s.control == "decentralised")
    critic_rounds = rounds * (s.critic != "exact")
    signal_rounds = rounds * (SIGNALS[s.signal].has_reward and s.direction == "sampled")
    actor_rounds = rounds * (s.actors == "gossiped")
    links = (draws.matrix > 0).sum((-2, -1)) - s.n_agents
    n_params = draws.critic_h.shape[1] if s.critic == "linear" else s.depth * s.width**2
    n_actor = s.width * (s.depth * s.width + draws.actor_h.shape[2] + N_ACTIONS)
    numbers = critic_rounds * n_params + signal_rounds * s.actor_samples + actor_rounds * n_actor
    return {
        "rounds": np.full(n_seeds, critic_rounds + signal_rounds + actor_rounds),
        "messages": links * (critic_rounds + signal_rounds + actor_rounds),
        "bytes": links * numbers * 4,
    }
