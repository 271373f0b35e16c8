"""Algorithms 1, 2 and 3 on the grid, compiled, for one seed: the fast form of reference.py, which tests prove it equal to.

run: [ sample each step -> learn from the first K (Algorithm 2) -> gossip -> weigh and act on the last M (Algorithm 1) ]*
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from rlhf_marl.gridworld.layers import (
    COMPILED,
    add_outer,
    backward,
    combine,
    copy,
    dot,
    forward,
    largest,
    mix,
    outside_norm,
)
from rlhf_marl.gridworld.spread import EPISODE, N_ACTIONS

TD_Q_LITERAL, TD_Q, TD_V, Q_VALUE, COUNTERFACTUAL = range(5)
REACHED, REDRAWN, NONE = range(3)
# Columns of the statistics: sums over an interval's iterations (or steps), see training.py.
REWARD, VALUE, POSITIVE, ENTROPY, PROJECTED, SKIPPED = range(6)
N_STATISTICS = 6


class Options(NamedTuple):
    """A Setting as the kernel wants it: choices as numbers (see the constants above), conditions as booleans."""

    critic_steps: int
    actor_samples: int
    signal: int
    bootstrap: int
    inverse: bool
    restart: bool
    average: bool
    linear: bool
    centralised: bool
    local: bool
    closest: bool
    restart_kernel: bool
    discount: float
    reward_shift: float
    reward_scale: float


class Scratch(NamedTuple):
    """Arrays that `run` works in. Slot 0 holds the critic's K samples one after the other, then the slots the actors' M."""

    cells: np.ndarray
    reached: np.ndarray
    actions: np.ndarray
    next_actions: np.ndarray
    other: np.ndarray
    x: np.ndarray
    rewards: np.ndarray
    x0: np.ndarray
    next_x0: np.ndarray
    learned: np.ndarray
    follows: np.ndarray
    critic_hidden: np.ndarray
    critic_back: np.ndarray
    actor_x: np.ndarray
    hidden: np.ndarray
    back: np.ndarray
    top: np.ndarray
    spare_x: np.ndarray
    spare_hidden: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    pi: np.ndarray
    d_logits: np.ndarray
    unlikely: np.ndarray
    advantage: np.ndarray
    weights: np.ndarray
    one: np.ndarray
    rate: np.ndarray
    shares: np.ndarray


def make_scratch(
    o: Options, critic_h: np.ndarray, critics: np.ndarray, actor_h: np.ndarray, actor_w: np.ndarray
) -> Scratch:
    """For one seed's arrays, see `run`."""
    slots, kind = o.actor_samples, critics.dtype
    (n, depth, m), d_actor, (d, d0) = actor_w.shape[:3], actor_h.shape[1], critic_h.shape
    _, n_critics, critic_depth = critics.shape[:3]

    def integers(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.int64)

    def floats(*shape: int) -> np.ndarray:
        return np.zeros(shape, kind)

    return Scratch(
        cells=integers(slots, n),
        reached=integers(slots, n),
        actions=integers(slots, n),
        next_actions=integers(n),
        other=integers(n),
        x=floats(d),
        rewards=np.zeros(n),
        x0=floats(slots, d0),
        next_x0=floats(slots, d0),
        learned=floats(slots, n_critics),
        follows=floats(slots),
        critic_hidden=floats(critic_depth + 1, d0),
        critic_back=floats(critic_depth + 1, d0),
        actor_x=floats(n, slots, d_actor),
        hidden=floats(n, slots, depth + 1, m),
        back=floats(slots, depth + 1, m),
        top=floats(m),
        spare_x=floats(d_actor),
        spare_hidden=floats(depth + 1, m),
        logits=floats(N_ACTIONS),
        probabilities=floats(N_ACTIONS),
        pi=floats(n, slots, N_ACTIONS),
        d_logits=floats(n, slots, N_ACTIONS),
        unlikely=floats(n, slots),
        advantage=floats(slots, n_critics),
        weights=floats(n, slots),
        one=np.ones(1, kind),
        rate=floats(1),
        shares=floats(o.critic_steps),
    )


@njit(**COMPILED)
def _encode(cells, actions, with_actions, first, scaled, x):
    """encoding.py: coordinates of agents first, first + 1, ..., a constant, and the actions one-hot; length 1."""
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
def _policy(cells, agent, scaled, h, w, b, scale, x, hidden, logits):
    """Logits of one agent, with its x and its hidden layers."""
    _encode(cells, cells, False, agent, scaled, x)
    combine(h, x, hidden[0])
    forward(w, hidden, scale)
    for a in range(N_ACTIONS):
        logits[a] = dot(b[a], hidden[len(w)])


@njit(**COMPILED)
def _softmax(logits, probabilities):
    """Returns log Σ exp(logits)."""
    top = largest(logits)
    total = top * 0
    for a in range(N_ACTIONS):
        probabilities[a] = np.exp(logits[a] - top)
        total += probabilities[a]
    for a in range(N_ACTIONS):
        probabilities[a] /= total
    return top + np.log(total)


@njit(**COMPILED)
def fill_table(inputs, scale, h, w, b, hidden, table):
    """An agent's action probabilities for many inputs. inputs: (n, d); w: (D, m, m), inputs first; table: (n, 5)."""
    for row in range(len(inputs)):
        combine(h, inputs[row], hidden[0])
        forward(w, hidden, scale)
        for a in range(N_ACTIONS):
            table[row, a] = dot(b[a], hidden[len(w)])
        _softmax(table[row], table[row])


@njit(**COMPILED)
def _draw(probabilities, uniform):
    """The first action whose cumulated probability exceeds the uniform number."""
    total = probabilities[0] * 0
    for a in range(N_ACTIONS - 1):
        total += probabilities[a]
        if uniform < total:
            return a
    return N_ACTIONS - 1


@njit(**COMPILED)
def _score(logits, action, log_total, d_logits):
    """d log π(action) / d logits, divided by 1 - π(action) so that d_logits[action] = 1; returns log(1 - π(action)).

    Kept apart because 1 - π of a nearly deterministic policy is 0 in floating point, and line 17 divides by the norm.
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
def _rewards(positions, landmarks, distance, closest, rewards):
    """Team reward, and local rewards (spread.py) into rewards."""
    n = len(positions)
    for i in range(n):
        rewards[i] = 0
    team = 0.0
    for l in range(len(landmarks)):
        nearest, sharing = 1 << 30, 0
        for i in range(n):
            away = distance[positions[i], landmarks[l]]
            if away < nearest:
                nearest, sharing = away, 1
            elif away == nearest:
                sharing += 1
        team -= nearest
        if closest:
            for i in range(n):
                if distance[positions[i], landmarks[l]] == nearest:
                    rewards[i] -= n * nearest / sharing
    if not closest:
        for i in range(n):
            rewards[i] = team
    return team


@njit(**COMPILED)
def _learn_layer(now, average, separate, centre, pace, share, x, y, bound, radius):
    """Lines 7 to 9 on one layer: W ← W - pace x ⊗ y, back into the ball, and its share into the average.

    The average is linear in the steps: W̄ = W(0) + Σ_k share_k (W(k+1) - W(k)). With `separate` false (K = 1) only the
    average is kept, in `now`. `bound` is an upper bound of ‖W - W(0)‖; only if it leaves line 8 in doubt is the
    distance measured. Returns the bound after, and whether the layer was outside.
    """
    # Rounding must not hide a step over the edge.
    after = (bound + abs(pace) * np.sqrt(dot(x, x) * dot(y, y))) * (1 + 1e-6)
    shrink, outside = pace * 0 + 1, 0
    if after > radius:
        norm = outside_norm(now, centre, -pace, x, y)
        after = norm
        if norm > radius:
            shrink, outside, after = radius / norm, 1, radius * (1 + 1e-6)
    if outside:
        for j in range(len(x)):
            pull = pace * x[j]
            for k in range(len(y)):
                moved = centre[j, k] + shrink * (now[j, k] - pull * y[k] - centre[j, k]) - now[j, k]
                average[j, k] += share * moved
                if separate:
                    now[j, k] += moved
    else:
        add_outer(average, -share * pace, x, y)
        if separate:
            add_outer(now, -pace, x, y)
    return after, outside


@njit(**COMPILED)
def _value(linear, w, b, x0, hidden, scale):
    """Q or V of one critic, the hidden layers left in `hidden`; w: (D, m, m), or (1, 1, d) of a linear critic."""
    for k in range(len(x0)):
        hidden[0, k] = x0[k]
    if linear:
        return dot(w[0, 0], x0)
    forward(w, hidden, scale)
    return dot(b, hidden[len(w)])


@njit(**COMPILED)
def _learn(o, numbers, power, share, centre, b, now, average, separate, x0, next_x0, follows, rewards, bounds, hidden, back, one, statistics):  # fmt: skip
    """Lines 6 to 9 of Algorithm 2 for every critic on one sample. now, average: (C, D, m, m); bounds: (2, C, D)."""
    beta, radius, scale = numbers[2], numbers[3], numbers[4]
    n_critics, depth = now.shape[0], now.shape[1]
    for c in range(n_critics):
        w = now[c]
        target = rewards[c]
        if follows != 0:
            target += follows * _value(o.linear, w, b, next_x0, hidden, scale)
        pace = beta * (_value(o.linear, w, b, x0, hidden, scale) - target)
        size = pace * 0
        if o.linear:
            size = dot(x0, x0)
        else:
            backward(w, hidden, b, back, scale, False)
            for layer in range(depth):
                size += dot(hidden[layer], hidden[layer]) * dot(back[layer], back[layer])
        if not np.isfinite(pace * pace * size):
            statistics[SKIPPED] += 1
            continue
        for layer in range(depth):
            bound = bounds[0, c, layer]
            after, outside = _learn_layer(
                w[layer], average[c, layer], separate, centre[layer], pace, share,
                one if o.linear else hidden[layer], x0 if o.linear else back[layer], bound, radius,
            )  # fmt: skip
            bounds[0, c, layer] = after
            bounds[1, c, layer] += share * (after - bound)
            statistics[PROJECTED] += outside / (o.critic_steps * depth * n_critics)


@njit(**COMPILED)
def _gossip(power, source, target, bounds):
    """Line 12. A weighted mean of points in the ball is in the ball. source, target: (C, D, m, m)."""
    n_critics, depth = source.shape[0], source.shape[1]
    mix(power, source.reshape(n_critics, -1), target.reshape(n_critics, -1))
    for c in range(n_critics):
        for layer in range(depth):
            total = power[0, 0] * 0
            for e in range(n_critics):
                total += power[c, e] * bounds[1, e, layer]
            bounds[0, c, layer] = total * (1 + 1e-6)


@njit(**COMPILED)
def _act(rate, scale, weights, x, hidden, d_logits, top, back, h, w, b):
    """Lines 16 and 17 for one agent: a step of length `rate` along Σ_l weights_l ∇log π_l; False if it is not finite.

    weights: (M,), of moderate size; x: (M, d'); hidden, back: (M, D + 1, m); d_logits: (M, 5).
    """
    n_samples, depth = len(weights), len(w)
    for l in range(n_samples):
        for k in range(len(top)):
            top[k] = 0
        for a in range(N_ACTIONS):
            for k in range(len(top)):
                top[k] += d_logits[l, a] * b[a, k]
        backward(w, hidden[l], top, back[l], scale, True)
    # All gradients are sums of outer products, so that their inner products are products of vectors'.
    square = rate * 0
    for l in range(n_samples):
        for e in range(l + 1):
            alike = dot(d_logits[l], d_logits[e]) * dot(hidden[l, depth], hidden[e, depth])
            alike += dot(x[l], x[e]) * dot(back[l, depth], back[e, depth])
            for layer in range(depth):
                alike += dot(hidden[l, layer], hidden[e, layer]) * dot(back[l, layer], back[e, layer])
            square += weights[l] * weights[e] * (alike + alike if e < l else alike)
    if square <= 0:
        return True
    if not np.isfinite(square):
        return False
    pace = rate / np.sqrt(square)
    for l in range(n_samples):
        push = pace * weights[l]
        add_outer(h, push, x[l], back[l, depth])
        for layer in range(depth):
            add_outer(w[layer], push, hidden[l, layer], back[l, layer])
        add_outer(b, push, d_logits[l], hidden[l, depth])
    return True


@njit(**COMPILED)
def run(
    o, first_iteration, iterations, numbers, scaled, distance, next_cell, readers,
    landmarks, power, critic_h, critic_0, critic_b, actor_h, actor_w, actor_b,
    critics, bounds, positions, age, uniforms, redrawn, statistics, scratch,
):  # fmt: skip
    """`iterations` iterations of Algorithm 1 on one seed, in place.

    numbers: γ, α, β, B, 1 / √m, in the precision of the weights; scalars of another precision would slow the inner loops.

    Shapes (N agents, C critics: N, N + 1 with Algorithm 3 as yardstick, or Algorithm 3 alone; m padded):
        power: (C, C) gossip among critics. readers: (N,) the critic whose values weigh each agent's score function.
        critic_h (d, m), critic_0 (D, m, m), critic_b (m,): fixed. critics (2, C, D, m, m): after and before gossip.
        A linear critic has H = I, so (d, d), and weights (1, 1, d).
        bounds (2, C, D): upper bounds of the distances to W(0), of the iterate and of the average.
        actor_h (N, d', m), actor_w (N, D, m, m), actor_b (N, 5, m).
        positions (N,), age (1,): the state. uniforms (steps, 2 N + 1), redrawn (steps, N): noise.
        statistics (N_STATISTICS,): sums, added to. scratch: see Scratch.
    """
    n, n_samples = len(positions), o.actor_samples
    n_critics = critics.shape[1]
    q_critic, bootstraps = o.signal != TD_V, o.signal < Q_VALUE
    scale = numbers[4]
    (
        cells, reached, actions, next_actions, other, x, rewards, x0, next_x0, learned, follows, critic_hidden, critic_back,
        actor_x, hidden, back, top, spare_x, spare_hidden, logits, probabilities, pi, d_logits, unlikely, advantage, weights,
        one, rate, shares,
    ) = scratch  # fmt: skip
    for k in range(o.critic_steps):
        shares[k] = (o.critic_steps - k) / (o.critic_steps + 1) if o.average else 1
    separate = o.critic_steps > 1
    now = 0  # which of the two critics is the current one; with K = 1 gossip goes from one to the other
    step = 0
    for t in range(first_iteration, first_iteration + iterations):
        if o.restart:
            for c in range(n_critics):
                copy(critic_0, critics[now, c])
                for layer in range(bounds.shape[2]):
                    bounds[0, c, layer] = 0
        copy(bounds[0], bounds[1])
        if separate:
            copy(critics[now], critics[1 - now])
        for k in range(o.critic_steps + n_samples - 1):
            slot = max(k - o.critic_steps + 1, 0)
            # The environment
            for i in range(n):
                cells[slot, i] = positions[i]
            for i in range(n):
                _policy(positions, i, scaled, actor_h[i], actor_w[i], actor_b[i], scale, actor_x[i, slot], hidden[i, slot], logits)  # fmt: skip
                log_total = _softmax(logits, pi[i, slot])
                action = _draw(pi[i, slot], uniforms[step, i])
                actions[slot, i] = action
                reached[slot, i] = next_cell[cells[slot, i], action]
                if k >= o.critic_steps - 1:
                    unlikely[i, slot] = _score(logits, action, log_total, d_logits[i, slot])
                    statistics[ENTROPY] += log_total - dot(pi[i, slot], logits)
            statistics[REWARD] += _rewards(reached[slot], landmarks, distance, o.closest, rewards)
            mean = 0.0
            for i in range(n):
                rewards[i] = (rewards[i] + o.reward_shift) * o.reward_scale
                mean += rewards[i] / n
            for c in range(n_critics):
                learned[slot, c] = mean if o.centralised or c == n else rewards[c]
            age[0] += 1
            redraw = uniforms[step, 2 * n] >= o.discount if o.restart_kernel else age[0] >= EPISODE
            follows[slot] = numbers[0]
            for i in range(n):
                positions[i] = redrawn[step, i] if redraw else reached[slot, i]
            if redraw:
                age[0] = 0
                if o.bootstrap == NONE:
                    follows[slot] = 0
                elif o.bootstrap == REDRAWN:
                    for i in range(n):
                        reached[slot, i] = positions[i]
            if q_critic:
                for i in range(n):
                    _policy(reached[slot], i, scaled, actor_h[i], actor_w[i], actor_b[i], scale, spare_x, spare_hidden, logits)  # fmt: skip
                    _softmax(logits, probabilities)
                    next_actions[i] = _draw(probabilities, uniforms[step, n + i])
            _encode(cells[slot], actions[slot], q_critic, 0, scaled, x)
            combine(critic_h, x, x0[slot])
            _encode(reached[slot], next_actions, q_critic, 0, scaled, x)
            combine(critic_h, x, next_x0[slot])
            step += 1
            # Algorithm 2 (or 3)
            if k < o.critic_steps:
                _learn(
                    o, numbers, power, shares[k], critic_0, critic_b, critics[now], critics[1 - now if separate else now],
                    separate, x0[0], next_x0[0], follows[0], learned[0], bounds, critic_hidden, critic_back, one, statistics,
                )  # fmt: skip
            if k == o.critic_steps - 1:
                if not separate:
                    now = 1 - now
                _gossip(power, critics[1 - now], critics[now], bounds)
        # Algorithm 1, lines 6 to 15
        for l in range(n_samples):
            for c in range(n_critics):
                value = _value(o.linear, critics[now, c], critic_b, x0[l], critic_hidden, scale)
                statistics[VALUE] += abs(value) / (n_critics * n_samples)
                advantage[l, c] = value
                if bootstraps:
                    after = value * 0
                    if follows[l] != 0:
                        after = follows[l] * _value(
                            o.linear, critics[now, c], critic_b, next_x0[l], critic_hidden, scale
                        )
                    advantage[l, c] = after - value + (value * 0 if o.local else learned[l, c])
            for i in range(n):
                reader = readers[i]
                total = advantage[l, reader]
                if bootstraps:
                    total = dot(power[reader], advantage[l])
                if o.local:
                    total += power[i, i] * learned[l, i]
                if o.signal == TD_Q_LITERAL:
                    total = -total
                if o.signal == COUNTERFACTUAL:
                    for e in range(n):
                        other[e] = actions[l, e]
                    for a in range(N_ACTIONS):
                        other[i] = a
                        _encode(cells[l], other, True, 0, scaled, x)
                        combine(critic_h, x, next_x0[l])
                        total -= pi[i, l, a] * _value(
                            o.linear, critics[now, reader], critic_b, next_x0[l], critic_hidden, scale
                        )
                weights[i, l] = total
                statistics[POSITIVE] += (total > 0) / (n * n_samples)
        # Lines 16 and 17: the direction's length does not matter, so it is brought to a moderate one
        rate[0] = numbers[1] / (t + 1) if o.inverse else numbers[1]
        for i in range(n):
            likeliest = largest(unlikely[i])
            size = numbers[0] * 0
            for l in range(n_samples):
                weights[i, l] *= np.exp(unlikely[i, l] - likeliest)
                size = max(size, abs(weights[i, l]))
            if size == 0:
                continue
            for l in range(n_samples):
                weights[i, l] /= size
            if not _act(rate[0], scale, weights[i], actor_x[i], hidden[i], d_logits[i], top, back, actor_h[i], actor_w[i], actor_b[i]):  # fmt: skip
                statistics[SKIPPED] += 1
    if now == 1:
        for c in range(n_critics):
            after, before = critics[1, c].reshape(-1), critics[0, c].reshape(-1)
            for k in range(len(after)):
                after[k], before[k] = before[k], after[k]
