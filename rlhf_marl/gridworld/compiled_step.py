"""Compiled step of the grid: observe, sample, move, reward."""

import numpy as np
from numba import njit

from rlhf_marl.gridworld.compiled_layout import CLOSEST, ENTROPY, NONE, OWNED, REDRAWN, REWARD, SHARED, TD_V
from rlhf_marl.gridworld.compiled_network import COMPILED, dot, forward, largest, multiply
from rlhf_marl.gridworld.spread import EPISODE, N_ACTIONS


@njit(**COMPILED)
def encode(cells, actions, with_actions, first, scaled, x):
    """As encoding.py: coordinates of agents first, first + 1, ..., a constant, one-hot actions; unit length."""
    n = len(cells)
    total = x[0] * 0 + 1
    for j in range(2 * n, len(x)):
        x[j] = 0
    agent = first
    for i in range(n):
        cell = cells[agent]
        x[2 * i], x[2 * i + 1] = scaled[cell, 0], scaled[cell, 1]
        total += scaled[cell, 0] * scaled[cell, 0] + scaled[cell, 1] * scaled[cell, 1]
        agent = agent + 1 if agent + 1 < n else 0
    x[2 * n] = 1
    if with_actions:
        for i in range(n):
            x[2 * n + 1 + N_ACTIONS * i + actions[i]] = 1
            total += 1
    shrink = 1 / np.sqrt(total)
    for j in range(len(x)):
        x[j] *= shrink


@njit(**COMPILED)
def policy(cells, agent, scaled, seed, scale, x, hidden, logits, on):
    """Compute one agent's logits, its input x and its hidden layers."""
    b, depth = seed.actor_b[agent], seed.actor_w.shape[1]
    encode(cells, cells, False, agent, scaled, x)
    multiply(seed.actor_h[agent], x, hidden[0], on)
    forward(seed.actor_w[agent], hidden, scale, on)
    for a in range(N_ACTIONS):
        logits[a] = dot(b[a], hidden[depth])


@njit(**COMPILED)
def softmax(logits, probabilities):
    """Fill `probabilities`; return log Σ exp(logits)."""
    top = largest(logits)
    total = top * 0
    for a in range(N_ACTIONS):
        probabilities[a] = np.exp(logits[a] - top)
        total += probabilities[a]
    for a in range(N_ACTIONS):
        probabilities[a] /= total
    return top + np.log(total)


@njit(**COMPILED)
def fill_table(inputs, scale, h, w, b, hidden, table, on):
    """Action probabilities of one agent for many inputs. inputs: (n, d); w: (D, m, m), inputs first; table: (n, 5)."""
    for row in range(len(inputs)):
        multiply(h, inputs[row], hidden[0], on)
        forward(w, hidden, scale, on)
        for a in range(N_ACTIONS):
            table[row, a] = dot(b[a], hidden[len(w)])
        softmax(table[row], table[row])


@njit(**COMPILED)
def draw(probabilities, uniform):
    """The first action whose cumulative probability exceeds the uniform number."""
    total = probabilities[0] * 0
    for a in range(N_ACTIONS - 1):
        total += probabilities[a]
        if uniform < total:
            return a
    return N_ACTIONS - 1


@njit(**COMPILED)
def score(logits, action, log_total, d_logits):
    """d log π(action) / d logits, divided by 1 - π(action) so that d_logits[action] = 1; returns log(1 - π(action)).

    The factor is kept as a log: 1 - π of a near-deterministic policy rounds to 0, and line 17 divides by the norm.
    """
    top = logits[action] * 0 - np.inf
    for a in range(N_ACTIONS):
        if a != action:
            top = max(top, logits[a])
    total = top * 0
    for a in range(N_ACTIONS):
        d_logits[a] = -np.exp(logits[a] - top) if a != action else 0
        total -= d_logits[a]
    for a in range(N_ACTIONS):
        d_logits[a] /= total
    d_logits[action] = 1
    return top + np.log(total) - log_total


@njit(**COMPILED)
def local_rewards(positions, landmarks, distance, split, rewards):
    """Return the team reward; write the local rewards (spread.py) into `rewards`."""
    n = len(positions)
    for i in range(n):
        rewards[i] = 0
    team = 0.0
    for j in range(len(landmarks)):
        landmark, nearest, sharing = landmarks[j], 1 << 30, 0
        for i in range(n):
            away = distance[positions[i], landmark]
            if away < nearest:
                nearest, sharing = away, 1
            elif away == nearest:
                sharing += 1
        team -= nearest
        if split == OWNED:
            rewards[j % n] -= n * nearest
        elif split == CLOSEST:
            for i in range(n):
                if distance[positions[i], landmark] == nearest:
                    rewards[i] -= n * nearest / sharing
    if split == SHARED:
        for i in range(n):
            rewards[i] = team
    return team


@njit(**COMPILED)
def play(o, tables, seed, z, slot, step, scored):
    """Play one step under the current policies; write the sample (s, a, r, s', a') into `slot`.

    With `scored`, also the gradients of log π(a | s) with respect to the logits, and the policies' entropies.
    """
    n, scale = len(seed.positions), tables.numbers[4]
    cells, actions, reached, rewards = z.cells[slot], z.actions[slot], z.reached[slot], z.rewards
    for i in range(n):
        cells[i] = seed.positions[i]
    for i in range(n):
        policy(cells, i, tables.scaled, seed, scale, z.actor_x[i, slot], z.hidden[i, slot], z.logits, z.on)
        log_total = softmax(z.logits, z.pi[i, slot])
        actions[i] = draw(z.pi[i, slot], seed.uniforms[step, i])
        reached[i] = tables.next_cell[cells[i], actions[i]]
        if scored:
            z.unlikely[i, slot] = score(z.logits, actions[i], log_total, z.d_logits[i, slot])
            seed.statistics[ENTROPY] += log_total - dot(z.pi[i, slot], z.logits)
    seed.statistics[REWARD] += local_rewards(reached, seed.landmarks, tables.distance, o.split, rewards)
    mean = 0.0
    for i in range(n):
        rewards[i] = (rewards[i] + o.reward_shift) * o.reward_scale
        mean += rewards[i] / n
    for c in range(len(seed.power)):
        z.learned[slot, c] = mean if o.centralised or c == n else rewards[c]
    # `reached` becomes the next state of the TD target
    seed.age[0] += 1
    redraw = seed.uniforms[step, 2 * n] >= o.discount if o.restart_kernel else seed.age[0] >= EPISODE
    for i in range(n):
        seed.positions[i] = seed.redrawn[step, i] if redraw else reached[i]
    z.follows[slot] = tables.numbers[0]
    if redraw:
        seed.age[0] = 0
        if o.bootstrap == NONE:
            z.follows[slot] = 0
        elif o.bootstrap == REDRAWN:
            for i in range(n):
                reached[i] = seed.positions[i]
    if o.signal != TD_V:
        for i in range(n):
            policy(reached, i, tables.scaled, seed, scale, z.spare_x, z.spare_hidden, z.logits, z.on)
            softmax(z.logits, z.probabilities)
            z.next_actions[i] = draw(z.probabilities, seed.uniforms[step, n + i])
    encode(cells, actions, o.signal != TD_V, 0, tables.scaled, z.x)
    multiply(seed.critic_h, z.x, z.x0[slot], z.on)
    encode(reached, z.next_actions, o.signal != TD_V, 0, tables.scaled, z.x)
    multiply(seed.critic_h, z.x, z.next_x0[slot], z.on)
