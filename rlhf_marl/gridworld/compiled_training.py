"""Algorithms 1, 2 and 3 on the grid for one seed: a compiled port, tested equal to tests/gridworld/reference.py.

    run: [ step -> critics learn from the first K (Algorithm 2) -> gossip -> actors learn from the last M (line 17) ]*

compiled_step.py plays the steps, compiled_network.py has the network, compiled_layout.py describes the arrays.
"""

import numpy as np
from numba import njit

from rlhf_marl.gridworld.compiled_layout import (
    COUNTERFACTUAL,
    POSITIVE,
    PROJECTED,
    Q_VALUE,
    SKIPPED,
    TD_Q_LITERAL,
    VALUE,
)
from rlhf_marl.gridworld.compiled_network import (
    COMPILED,
    add_outer,
    backward,
    copy,
    dot,
    forward,
    largest,
    mix,
    multiply,
    outside_norm,
    wide_dot,
)
from rlhf_marl.gridworld.compiled_step import encode, play
from rlhf_marl.gridworld.spread import N_ACTIONS

_FAR = 1e37  # critic steps this long count as not finite: single precision would overflow soon


@njit(**COMPILED)
def run(o, tables, seed, z, first_iteration, iterations):
    """Run `iterations` iterations of Algorithm 1 on one seed, in place. o: Options; z: Scratch."""
    for k in range(o.critic_steps):
        z.shares[k] = (o.critic_steps - k) / (o.critic_steps + 1) if o.average else 1
    separate = o.critic_steps > 1
    now = 0  # index of the current critic buffer: with K = 1, gossip alternates between the two
    step = 0
    for t in range(first_iteration, first_iteration + iterations):
        if o.restart:
            for c in range(len(seed.power)):
                copy(seed.critic_0, seed.critics[now, c])
                for layer in range(seed.bounds.shape[2]):
                    seed.bounds[0, c, layer] = 0
        copy(seed.bounds[0], seed.bounds[1])
        if separate:
            copy(seed.critics[now], seed.critics[1 - now])
        for k in range(o.critic_steps + o.actor_samples - 1):
            last = k - (o.critic_steps - 1)  # 0 at the K-th sample, the actors' first
            play(o, tables, seed, z, max(last, 0), step, last >= 0)
            step += 1
            if last <= 0 and not o.exact:
                _learn(o, tables, seed, z, seed.critics[now], seed.critics[1 - now if separate else now], z.shares[k])
            if last == 0:
                if not separate:
                    now = 1 - now
                _gossip(seed.power, seed.critics[1 - now], seed.critics[now], seed.bounds)
        _weigh(o, tables, seed, z, seed.critics[now])
        _act(o, tables, seed, z, t)
        if o.gossiped_actors:
            _gossip_actors(seed.power, seed.actor_h, z.mixed)
            _gossip_actors(seed.power, seed.actor_w, z.mixed)
            _gossip_actors(seed.power, seed.actor_b, z.mixed)
    if now == 1:
        _swap(seed.critics[0].reshape(-1), seed.critics[1].reshape(-1))


@njit(**COMPILED)
def _learn_layer(now, average, separate, centre, pace, share, x, y, bound, radius, on):
    """Lines 7 to 9 on one layer: W ← W - pace x ⊗ y, project onto the ball, add to the average.

    The average is linear in the steps: W̄ = W(0) + Σ_k share_k (W(k+1) - W(k)). With `separate` false (K = 1), `now`
    holds the average and nothing else is kept. `bound` is an upper bound of ‖W - W(0)‖; the distance is computed only
    if the new bound exceeds the radius. Returns the new bound, and whether the layer was outside the ball.
    """
    # The margin keeps rounding from hiding a step out of the ball.
    after = (bound + abs(pace) * np.sqrt(wide_dot(x, x) * wide_dot(y, y))) * (1 + 1e-6)
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
        add_outer(average, -share * pace, x, y, on)
        if separate:
            add_outer(now, -pace, x, y, on)
    return after, outside


@njit(**COMPILED)
def _value(linear, w, b, x0, hidden, scale, on):
    """Q or V of one critic; fills `hidden` with its layers. w: (D, m, m), or (1, 1, d) for a linear critic."""
    for k in range(len(x0)):
        hidden[0, k] = x0[k]
    if linear:
        return dot(w[0, 0], x0)
    forward(w, hidden, scale, on)
    return dot(b, hidden[len(w)])


@njit(**COMPILED)
def _learn(o, tables, seed, z, now, average, share):
    """Lines 6 to 9 of Algorithm 2 for every critic, on the sample in slot 0. now, average: (C, D, m, m)."""
    beta, radius, scale = tables.numbers[2], tables.numbers[3], tables.numbers[4]
    b, hidden, back = seed.critic_b, z.critic_hidden, z.critic_back
    n_critics, depth = now.shape[0], now.shape[1]
    for c in range(n_critics):
        w = now[c]
        target = z.learned[0, c]
        if z.follows[0] != 0:
            target += z.follows[0] * _value(o.linear, w, b, z.next_x0[0], hidden, scale, z.on)
        pace = beta * (_value(o.linear, w, b, z.x0[0], hidden, scale, z.on) - target)
        square = wide_dot(z.x0[0], z.x0[0])  # squared norm of the gradient
        if not o.linear:
            backward(w, hidden, b, back, scale, False, z.on)
            square = 0.0
            for layer in range(depth):
                square += wide_dot(hidden[layer], hidden[layer]) * wide_dot(back[layer], back[layer])
        if not abs(pace) * np.sqrt(square) < _FAR:
            seed.statistics[SKIPPED] += 1
            continue
        for layer in range(depth):
            bound = seed.bounds[0, c, layer]
            x, y = (z.one, z.x0[0]) if o.linear else (hidden[layer], back[layer])
            after, outside = _learn_layer(
                w[layer],
                average[c, layer],
                o.critic_steps > 1,
                seed.critic_0[layer],
                pace,
                share,
                x,
                y,
                bound,
                radius,
                z.on,
            )
            seed.bounds[0, c, layer] = after
            seed.bounds[1, c, layer] += share * (after - bound)
            seed.statistics[PROJECTED] += outside / (o.critic_steps * depth * n_critics)


@njit(**COMPILED)
def _gossip(power, source, target, bounds):
    """Line 12. A weighted mean of points in the ball stays in the ball. source, target: (C, D, m, m)."""
    n_critics, depth = source.shape[0], source.shape[1]
    mix(power, source.reshape(n_critics, -1), target.reshape(n_critics, -1))
    for c in range(n_critics):
        for layer in range(depth):
            total = power[0, 0] * 0
            for e in range(n_critics):
                total += power[c, e] * bounds[1, e, layer]
            bounds[0, c, layer] = total * (1 + 1e-6)


@njit(**COMPILED)
def _gossip_actors(power, weights, mixed):
    """The agents' weights (N, ...) mixed in place. mixed: (N, at least as many columns)."""
    flat = weights.reshape(len(weights), -1)
    mix(power, flat, mixed[:, : flat.shape[1]])
    for i in range(flat.shape[0]):
        for k in range(flat.shape[1]):
            flat[i, k] = mixed[i, k]


@njit(**COMPILED)
def _swap(a, b):
    for k in range(len(a)):
        a[k], b[k] = b[k], a[k]


@njit(**COMPILED)
def _weigh(o, tables, seed, z, critics):
    """Lines 9 and 12 to 15 of Algorithm 1: the weight of each agent's score function, into z.weights (N, M)."""
    n, n_samples, n_critics, scale = len(seed.positions), o.actor_samples, len(critics), tables.numbers[4]
    for j in range(n_samples):
        for c in range(n_critics):
            if o.exact:
                value = seed.values[z.cells[j, 0], z.cells[j, 1]]
            else:
                value = _value(o.linear, critics[c], seed.critic_b, z.x0[j], z.critic_hidden, scale, z.on)
            seed.statistics[VALUE] += abs(value) / (n_critics * n_samples)
            z.advantage[j, c] = value
            if o.signal < Q_VALUE:
                z.advantage[j, c] = -value if o.local else z.learned[j, c] - value
                if z.follows[j] != 0:
                    if o.exact:
                        following = seed.values[z.reached[j, 0], z.reached[j, 1]]
                    else:
                        following = _value(
                            o.linear, critics[c], seed.critic_b, z.next_x0[j], z.critic_hidden, scale, z.on
                        )
                    z.advantage[j, c] += z.follows[j] * following
        for i in range(n):
            reader = tables.readers[i]
            total = z.advantage[j, reader]
            if o.signal < Q_VALUE:
                total = dot(seed.power[reader], z.advantage[j])
            if o.local:
                total += o.own_share * z.learned[j, i]
            if o.signal == TD_Q_LITERAL:
                total = -total
            if o.signal == COUNTERFACTUAL:
                total -= _mean_over_own_actions(o, tables, seed, z, critics[reader], j, i)
            z.weights[i, j] = total
            seed.statistics[POSITIVE] += (total > 0) / (n * n_samples)


@njit(**COMPILED)
def _mean_over_own_actions(o, tables, seed, z, w, j, i):
    """Σ_b π^i(b | s) Q(s, (b, a^-i)) in sample j."""
    for e in range(len(z.other)):
        z.other[e] = z.actions[j, e]
    total = z.pi[i, j, 0] * 0
    for b in range(N_ACTIONS):
        z.other[i] = b
        encode(z.cells[j], z.other, True, 0, tables.scaled, z.x)
        multiply(seed.critic_h, z.x, z.spare_x0, z.on)
        total += z.pi[i, j, b] * _value(
            o.linear, w, seed.critic_b, z.spare_x0, z.critic_hidden, tables.numbers[4], z.on
        )
    return total


@njit(**COMPILED)
def _act(o, tables, seed, z, iteration):
    """Lines 16 and 17 of Algorithm 1 for every agent."""
    rate = tables.numbers[1]
    if o.inverse:
        z.rate[0] = rate / (iteration + 1)  # keeps the precision of the weights
        rate = z.rate[0]
    for i in range(len(seed.positions)):
        # Line 17 normalises the direction, so it can be rescaled to a moderate length.
        likeliest, size = largest(z.unlikely[i]), rate * 0
        for j in range(o.actor_samples):
            z.weights[i, j] *= np.exp(z.unlikely[i, j] - likeliest)
            size = max(size, abs(z.weights[i, j]))
        if size == 0:
            continue
        for j in range(o.actor_samples):
            z.weights[i, j] /= size
        if not _step_agent(
            rate, tables.numbers[4], z.weights[i], z.actor_x[i], z.hidden[i], z.d_logits[i], z.top, z.back, z.on,
            seed.actor_h[i], seed.actor_w[i], seed.actor_b[i],
        ):  # fmt: skip
            seed.statistics[SKIPPED] += 1


@njit(**COMPILED)
def _step_agent(rate, scale, weights, x, hidden, d_logits, top, back, on, h, w, b):
    """A step of length `rate` along Σ_j weights_j ∇log π_j for one agent; False if it is not finite.

    weights: (M,), moderate in size; x: (M, d'); hidden, back: (M, D + 1, m); d_logits: (M, 5).
    """
    n_samples, depth = len(weights), len(w)
    for j in range(n_samples):
        for k in range(len(top)):
            top[k] = 0
        for a in range(N_ACTIONS):
            for k in range(len(top)):
                top[k] += d_logits[j, a] * b[a, k]
        backward(w, hidden[j], top, back[j], scale, True, on)
    # All gradients are sums of outer products, so their inner products factor into products of vectors.
    square = 0.0
    for j in range(n_samples):
        for e in range(j + 1):
            alike = wide_dot(d_logits[j], d_logits[e]) * wide_dot(hidden[j, depth], hidden[e, depth])
            alike += wide_dot(x[j], x[e]) * wide_dot(back[j, depth], back[e, depth])
            for layer in range(depth):
                alike += wide_dot(hidden[j, layer], hidden[e, layer]) * wide_dot(back[j, layer], back[e, layer])
            square += weights[j] * weights[e] * (alike + alike if e < j else alike)
    if square <= 0:
        return True
    if not square < np.inf:  # np.isfinite(x) may compile to x - x == 0, which "reassoc" turns into 0 == 0
        return False
    for j in range(n_samples):
        weights[j] *= rate / np.sqrt(square)
        push = weights[j]  # in the precision of the weights
        add_outer(h, push, x[j], back[j, depth], on)
        for layer in range(depth):
            add_outer(w[layer], push, hidden[j, layer], back[j, layer], on)
        add_outer(b, push, d_logits[j], hidden[j, depth], on)
    return True
