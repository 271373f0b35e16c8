"""Algorithms 1, 2 and 3 on the grid, compiled: the fast form of reference.py, proved equal to it by a test.

Weights lie as (input, output) with the outputs padded to a multiple of eight, so that every inner loop runs over
contiguous numbers; inputs that a ReLU switched off are skipped. All gradients here have rank one per layer
(input ⊗ back-propagated signal), so they are applied without being stored.
"""

import numpy as np
from numba import njit

from rlhf_marl.gridworld.spread import EPISODE, N_ACTIONS

TD_Q_LITERAL, TD_Q, TD_V, Q_VALUE, COUNTERFACTUAL = range(5)
REACHED, REDRAWN, NONE = range(3)
# Columns of the statistics: sums over an interval's iterations (or steps), see training.py.
REWARD, VALUE, POSITIVE, ENTROPY, PROJECTED, SKIPPED = range(6)
N_STATISTICS = 6

# All but "nnan" and "ninf": a critic that diverges must be seen to do so.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_compiled = {"cache": True, "fastmath": _FAST, "nogil": True}


@njit(**_compiled)
def _forward(h, w, x, hidden, scale):
    """x^(0) = Hx, x^(h) = ReLU(W^(h) x^(h-1)) / √m into hidden (D + 1, m); h: (d, m), w: (D, m, m)."""
    d, m = h.shape
    depth = w.shape[0]
    hidden[0, :] = 0
    for j in range(d):
        if x[j] != 0:
            for k in range(m):
                hidden[0, k] += x[j] * h[j, k]
    for layer in range(depth):
        out = hidden[layer + 1]
        out[:] = 0
        for j in range(m):
            x_j = hidden[layer, j]
            if x_j != 0:
                for k in range(m):
                    out[k] += x_j * w[layer, j, k]
        for k in range(m):
            out[k] = out[k] * scale if out[k] > 0 else out[k] * 0


@njit(**_compiled)
def _dot(a, b):
    total = a[0] * 0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@njit(**_compiled)
def _backward(w, hidden, top, back, scale, to_input):
    """Back-propagate `top`, the gradient at x^(D): that of W^(l+1) becomes hidden[l] ⊗ back[l].

    With to_input the gradient at x^(0) is left in back[D], which is scratch otherwise.
    """
    depth, m = w.shape[0], w.shape[1]
    gradient = back[depth]
    gradient[:] = top
    for layer in range(depth - 1, -1, -1):
        for k in range(m):
            back[layer, k] = gradient[k] * scale if hidden[layer + 1, k] > 0 else gradient[k] * 0
        if layer == 0 and not to_input:
            break
        for j in range(m):
            # Units that are off pass nothing on; H's outputs have no ReLU.
            if layer == 0 or hidden[layer, j] > 0:
                gradient[j] = _dot(w[layer, j], back[layer])
            else:
                gradient[j] = 0


@njit(**_compiled)
def _encode(positions, actions, with_actions, first, scaled, x):
    """encoding.py: coordinates of agents first, first + 1, ..., a constant, and the actions one-hot; length 1."""
    n = len(positions)
    total = x[0] * 0 + 1
    x[:] = 0
    for i in range(n):
        cell = positions[(first + i) % n]
        for axis in range(2):
            x[2 * i + axis] = scaled[cell, axis]
            total += scaled[cell, axis] ** 2
    x[2 * n] = 1
    if with_actions:
        for i in range(n):
            x[2 * n + 1 + N_ACTIONS * i + actions[i]] = 1
            total += 1
    norm = total**0.5
    for j in range(len(x)):
        x[j] /= norm


@njit(**_compiled)
def _softmax(b, hidden, probabilities):
    """π(a) from the last hidden layer; b: (5, m)."""
    top = -np.inf
    for a in range(N_ACTIONS):
        probabilities[a] = _dot(b[a], hidden)
        top = max(top, probabilities[a])
    total = probabilities[0] * 0
    for a in range(N_ACTIONS):
        probabilities[a] = np.exp(probabilities[a] - top)
        total += probabilities[a]
    for a in range(N_ACTIONS):
        probabilities[a] /= total


@njit(**_compiled)
def _draw(probabilities, uniform):
    """The first action whose cumulated probability exceeds the uniform number."""
    total = probabilities[0] * 0
    for a in range(N_ACTIONS - 1):
        total += probabilities[a]
        if uniform < total:
            return a
    return N_ACTIONS - 1


@njit(**_compiled)
def _rewards(positions, landmarks, distance, closest, rewards):
    """Team reward, and local rewards (spread.py) into rewards."""
    n = len(positions)
    rewards[:] = 0
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
        rewards[:] = team
    return team


@njit(**_compiled)
def _value(linear, h, w, b, lin, x, hidden, scale):
    """Q or V of one critic, hidden layers left in `hidden`."""
    if linear:
        return _dot(lin, x)
    _forward(h, w, x, hidden, scale)
    return _dot(b, hidden[w.shape[0]])


@njit(**_compiled)
def _project(w, centre, radius, bound):
    """Line 8 on one layer, if `bound` (an upper bound of the distance) leaves it in doubt. Returns bound, outside."""
    if bound <= radius:
        return bound, 0
    total = w[0, 0] * 0
    for j in range(w.shape[0]):
        for k in range(w.shape[1]):
            total += (w[j, k] - centre[j, k]) ** 2
    norm = total**0.5
    if not norm > radius:
        return norm, 0
    shrink = radius / norm
    for j in range(w.shape[0]):
        for k in range(w.shape[1]):
            w[j, k] = centre[j, k] + (w[j, k] - centre[j, k]) * shrink
    return radius * (1 + 1e-6), 1


@njit(**_compiled)
def _td_step(w, centre, b, hidden, back, delta, beta, radius, scale, bounds, furthest):
    """Lines 7 and 8 on one critic whose hidden layers stand in `hidden`. Returns how many layers were projected."""
    _backward(w, hidden, b, back, scale, False)
    depth, m = w.shape[0], w.shape[1]
    pace = beta * delta
    projected = 0
    for layer in range(depth):
        for j in range(m):
            pull = pace * hidden[layer, j]
            if pull != 0:
                for k in range(m):
                    w[layer, j, k] -= pull * back[layer, k]
        length = (_dot(hidden[layer], hidden[layer]) * _dot(back[layer], back[layer])) ** 0.5
        # Rounding in the bound must not hide a step over the edge.
        bound = (bounds[layer] + abs(pace) * length) * (1 + 1e-6)
        bounds[layer], outside = _project(w[layer], centre[layer], radius, bound)
        furthest[layer] = max(furthest[layer], bounds[layer])
        projected += outside
    return projected


@njit(**_compiled)
def _ascend(h, w, b, x, hidden, back, d_logits, weight, rate, top, scale):
    """Line 17: one step of length `rate` along d = Σ_l weight_l ψ_l; False if d is not finite.

    x (M, d), hidden and back (M, D + 1, m), d_logits (M, 5): ψ_l is a sum of outer products of these, so that ‖d‖²
    needs their inner products alone. d is scaled to a largest entry near 1 first: far from the edges of float32.
    """
    samples, depth, m = len(x), w.shape[0], w.shape[1]
    largest = weight[0] * 0
    for l in range(samples):
        size = largest * 0
        for a in range(N_ACTIONS):
            size = max(size, abs(d_logits[l, a]))
        if size > 0:
            for a in range(N_ACTIONS):
                d_logits[l, a] /= size
        weight[l] *= size
        if not np.isfinite(weight[l]):
            return False
        largest = max(largest, abs(weight[l]))
    if largest == 0:
        return True
    for l in range(samples):
        weight[l] /= largest
        top[:] = 0
        for a in range(N_ACTIONS):
            for k in range(m):
                top[k] += d_logits[l, a] * b[a, k]
        _backward(w, hidden[l], top, back[l], scale, True)
    squared = largest * 0
    for l in range(samples):
        for e in range(samples):
            alike = _dot(d_logits[l], d_logits[e]) * _dot(hidden[l, depth], hidden[e, depth])
            alike += _dot(x[l], x[e]) * _dot(back[l, depth], back[e, depth])
            for layer in range(depth):
                alike += _dot(hidden[l, layer], hidden[e, layer]) * _dot(back[l, layer], back[e, layer])
            squared += weight[l] * weight[e] * alike
    norm = squared**0.5
    if norm == 0 or not np.isfinite(norm):
        return norm == 0
    for l in range(samples):
        push = rate * weight[l] / norm
        for layer in range(depth):
            for j in range(m):
                amount = push * hidden[l, layer, j]
                if amount != 0:
                    for k in range(m):
                        w[layer, j, k] += amount * back[l, layer, k]
        for j in range(len(x[l])):
            amount = push * x[l, j]
            for k in range(m):
                h[j, k] += amount * back[l, depth, k]
        for a in range(N_ACTIONS):
            amount = push * d_logits[l, a]
            for k in range(m):
                b[a, k] += amount * hidden[l, depth, k]
    return True


@njit(**_compiled)
def run(
    # numbers of the setting
    first_iteration, iterations, critic_steps, actor_samples, numbers, inverse, restart, average, linear, centralised,
    signal, local, closest, shift, reward_scale, restart_kernel, bootstrap,
    # tables
    scaled, distance, next_cell, readers,
    # of the seed
    landmarks, power, critic_h, critic_0, critic_b, actor_h, actor_w, actor_b,
    critic_w, critic_lin, before_w, before_lin, bounds, positions, age, uniforms, redrawn, statistics,
):  # fmt: skip
    """`iterations` iterations of Algorithm 1 on one seed, in place.

    numbers: γ, α, β, B, 1 / √m, in the precision of the weights; scalars of another precision would slow the inner loops.

    Shapes (N agents, C critics: N, N + 1 with Algorithm 3 as yardstick, or Algorithm 3 alone; m padded):
        power: (C, C) gossip among critics. readers: (N,) the critic whose values weigh each agent's score function.
        critic_h (d, m), critic_0 (D, m, m), critic_b (m,): fixed. critic_w (C, D, m, m), critic_lin (C, d).
        before_w, before_lin: weights before the last gossip. bounds (C, D): upper bounds of the distances to W(0).
        actor_h (N, d', m), actor_w (N, D, m, m), actor_b (N, 5, m).
        positions (N,), age (1,): the state. uniforms (steps, 2 N + 1), redrawn (steps, N): noise.
        statistics (N_STATISTICS,): sums, added to.
    """
    n = len(positions)
    n_critics, depth, m = critic_w.shape[0], critic_w.shape[1], critic_w.shape[2]
    d, d_actor = critic_h.shape[0], actor_h.shape[1]
    discount, alpha, beta, radius, scale = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    zero = numbers[0] * 0
    q_critic = signal != TD_V
    hidden = np.zeros((depth + 1, m), dtype=critic_b.dtype)
    back = np.zeros((depth + 1, m), dtype=critic_b.dtype)
    x = np.zeros(d, dtype=critic_b.dtype)
    x_next = np.zeros(d, dtype=critic_b.dtype)
    x_actor = np.zeros((actor_samples, n, d_actor), dtype=critic_b.dtype)
    actor_hidden = np.zeros((actor_samples, n, depth + 1, m), dtype=critic_b.dtype)
    actor_back = np.zeros((actor_samples, n, depth + 1, m), dtype=critic_b.dtype)
    top = np.zeros(m, dtype=critic_b.dtype)
    d_logits = np.zeros((actor_samples, n, N_ACTIONS), dtype=critic_b.dtype)
    probabilities = np.zeros((n, N_ACTIONS), dtype=critic_b.dtype)
    spare = np.zeros(N_ACTIONS, dtype=critic_b.dtype)
    advantage = np.zeros((actor_samples, n_critics), dtype=critic_b.dtype)
    weight = np.zeros((actor_samples, n), dtype=critic_b.dtype)
    rewards = np.zeros(n, dtype=np.float64)
    learned = np.zeros((actor_samples, n_critics), dtype=critic_b.dtype)
    cells = np.zeros((actor_samples, n), dtype=np.int64)
    reached = np.zeros((actor_samples, n), dtype=np.int64)
    actions = np.zeros((actor_samples, n), dtype=np.int64)
    next_actions = np.zeros((actor_samples, n), dtype=np.int64)
    follows = np.zeros(actor_samples, dtype=critic_b.dtype)
    other = np.zeros(n, dtype=np.int64)
    cast = np.zeros(2, dtype=critic_b.dtype)
    step = 0
    for t in range(first_iteration, first_iteration + iterations):
        # Algorithm 2 (or 3)
        if restart:
            for c in range(n_critics):
                critic_w[c] = critic_0
                critic_lin[c] = 0
                bounds[c] = 0
        before_w[:] = critic_w
        before_lin[:] = critic_lin
        furthest = bounds.copy()  # over the iterates that line 9 averages
        for l in range(-(critic_steps - 1), actor_samples):
            # Samples 1 - K, ..., 0 are the critic's; 0, ..., M - 1 the actors'. Slot 0 is used over and over by the former.
            slot = max(l, 0)
            for i in range(n):
                cells[slot, i] = positions[i]
            for i in range(n):
                _encode(cells[slot], other, False, i, scaled, x_actor[slot, i])
                _forward(actor_h[i], actor_w[i], x_actor[slot, i], actor_hidden[slot, i], scale)
                _softmax(actor_b[i], actor_hidden[slot, i, depth], probabilities[i])
                actions[slot, i] = _draw(probabilities[i], uniforms[step, i])
                reached[slot, i] = next_cell[cells[slot, i], actions[slot, i]]
                if l >= 0:
                    # 1 - π(a) as the sum of the others: exact also where π(a) rounds to 1.
                    d_logits[slot, i, actions[slot, i]] = 0
                    for a in range(N_ACTIONS):
                        if a != actions[slot, i]:
                            d_logits[slot, i, a] = -probabilities[i, a]
                            d_logits[slot, i, actions[slot, i]] += probabilities[i, a]
                        if probabilities[i, a] > 0:
                            statistics[ENTROPY] -= probabilities[i, a] * np.log(probabilities[i, a])
            statistics[REWARD] += _rewards(reached[slot], landmarks, distance, closest, rewards)
            mean = 0.0
            for i in range(n):
                rewards[i] = (rewards[i] + shift) * reward_scale
                mean += rewards[i] / n
            for c in range(n_critics):
                learned[slot, c] = mean if centralised or c == n else rewards[c]
            age[0] += 1
            if restart_kernel:
                redraw = uniforms[step, 2 * n] >= discount
            else:
                redraw = age[0] >= EPISODE
            for i in range(n):
                positions[i] = redrawn[step, i] if redraw else reached[slot, i]
            follows[slot] = discount
            if redraw:
                age[0] = 0
                if bootstrap == REDRAWN:
                    for i in range(n):
                        reached[slot, i] = positions[i]
                elif bootstrap == NONE:
                    follows[slot] = 0
            if q_critic:
                for i in range(n):
                    _encode(reached[slot], other, False, i, scaled, x_next[:d_actor])
                    _forward(actor_h[i], actor_w[i], x_next[:d_actor], hidden, scale)
                    _softmax(actor_b[i], hidden[depth], spare)
                    next_actions[slot, i] = _draw(spare, uniforms[step, n + i])
            step += 1
            if l > 0:
                continue
            # Lines 6 to 9 of Algorithm 2
            _encode(cells[slot], actions[slot], q_critic, 0, scaled, x)
            _encode(reached[slot], next_actions[slot], q_critic, 0, scaled, x_next)
            k = l + critic_steps - 1
            for c in range(n_critics):
                w, lin = critic_w[c], critic_lin[c]
                after = zero
                if follows[slot] != 0:
                    after = _value(linear, critic_h, w, critic_b, lin, x_next, hidden, scale)
                value = _value(linear, critic_h, w, critic_b, lin, x, hidden, scale)
                delta = value - learned[slot, c] - follows[slot] * after
                if not np.isfinite(delta):
                    statistics[SKIPPED] += 1
                elif linear:
                    for j in range(d):
                        lin[j] -= beta * delta * x[j]
                else:
                    projected = _td_step(
                        w, critic_0, critic_b, hidden, back, delta, beta, radius, scale, bounds[c], furthest[c]
                    )
                    statistics[PROJECTED] += projected / (critic_steps * depth * n_critics)
                if linear:
                    norm = _dot(lin, lin) ** 0.5
                    if norm > radius:
                        lin *= radius / norm
                        statistics[PROJECTED] += 1 / (critic_steps * n_critics)
                cast[0], cast[1] = (k + 1) / (k + 2), 1 / (k + 2)
                if not average:
                    cast[0], cast[1] = 0, 1
                old, new = cast[0], cast[1]
                flat_before, flat = before_w[c].reshape(-1), w.reshape(-1)
                for o in range(len(flat)):
                    flat_before[o] = old * flat_before[o] + new * flat[o]
                for o in range(d):
                    before_lin[c, o] = old * before_lin[c, o] + new * lin[o]
            if l < 0:
                continue
            # Line 12: gossip. A weighted mean of points in the ball is in the ball.
            for c in range(n_critics):
                bounds[c] = 0
                flat = critic_w[c].reshape(-1)
                flat[:] = 0
                critic_lin[c] = 0
                for e in range(n_critics):
                    share = power[c, e]
                    if share != 0:
                        flat_before = before_w[e].reshape(-1)
                        for o in range(len(flat)):
                            flat[o] += share * flat_before[o]
                        for o in range(d):
                            critic_lin[c, o] += share * before_lin[e, o]
                        for layer in range(depth):
                            bounds[c, layer] += share * furthest[e, layer] * (1 + 1e-6)
        # Algorithm 1, lines 6 to 16
        for l in range(actor_samples):
            _encode(cells[l], actions[l], q_critic, 0, scaled, x)
            _encode(reached[l], next_actions[l], q_critic, 0, scaled, x_next)
            for c in range(n_critics):
                w, lin = critic_w[c], critic_lin[c]
                value = _value(linear, critic_h, w, critic_b, lin, x, hidden, scale)
                statistics[VALUE] += abs(value) / (n_critics * actor_samples)
                if signal >= Q_VALUE:
                    advantage[l, c] = value
                    continue
                after = zero
                if follows[l] != 0:
                    after = _value(linear, critic_h, w, critic_b, lin, x_next, hidden, scale)
                advantage[l, c] = follows[l] * after - value + (zero if local else learned[l, c])
            for i in range(n):
                reader = readers[i]
                total = zero
                if signal >= Q_VALUE:
                    total = advantage[l, reader]
                else:
                    for e in range(n_critics):
                        total += power[reader, e] * advantage[l, e]
                if local:
                    total += power[i, i] * learned[l, i]
                if signal == TD_Q_LITERAL:
                    total = -total
                if signal == COUNTERFACTUAL:
                    _softmax(actor_b[i], actor_hidden[l, i, depth], spare)
                    other[:] = actions[l]
                    for a in range(N_ACTIONS):
                        other[i] = a
                        _encode(cells[l], other, True, 0, scaled, x)
                        total -= spare[a] * _value(
                            linear, critic_h, critic_w[reader], critic_b, critic_lin[reader], x, hidden, scale
                        )
                weight[l, i] = total / actor_samples
                statistics[POSITIVE] += (total > 0) / (n * actor_samples)
        cast[0] = alpha / (t + 1) if inverse else alpha
        for i in range(n):
            found = _ascend(
                actor_h[i], actor_w[i], actor_b[i], x_actor[:, i], actor_hidden[:, i], actor_back[:, i], d_logits[:, i],
                weight[:, i], cast[0], top, scale,
            )  # fmt: skip
            statistics[SKIPPED] += not found
