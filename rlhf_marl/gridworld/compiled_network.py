"""Compiled building blocks of the network of Eq. (5), for one input at a time.

Weights are stored as (input, output). Outputs are zero-padded to a multiple of eight, so every inner loop is
contiguous. Inputs that a ReLU set to zero are skipped. A layer's gradient for one input has rank one
(input ⊗ back-propagated signal) and is applied without being stored.
"""

import numpy as np
from numba import njit

COMPILED = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    # All but "nnan" and "ninf": a diverging critic must stay visible.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    # Reference counting of slices took a quarter of the time. Without it, compiled code must not create arrays.
    "_nrt": False,
}


@njit(**COMPILED)
def dot(a, b):
    """Σ a_k b_k."""
    total = a[0] * 0
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@njit(**COMPILED)
def wide_dot(a, b):
    """Σ a_k b_k in double precision: squared gradients of deep networks exceed the range of single precision."""
    total = 0.0
    for k in range(len(a)):
        total += np.float64(a[k]) * np.float64(b[k])
    return total


@njit(**COMPILED)
def largest(a):
    """The largest entry."""
    top = a[0]
    for k in range(1, len(a)):
        top = max(top, a[k])
    return top


@njit(**COMPILED)
def copy(source, target):
    """target = source; both contiguous and of equal size."""
    flat, out = source.reshape(-1), target.reshape(-1)
    for k in range(len(out)):
        out[k] = flat[k]


@njit(**COMPILED)
def switched_on(x, on):
    """Write the indices of the nonzero entries of x into `on`; return their number."""
    n = 0
    for j in range(len(x)):
        on[n] = j  # no branch: active units are unpredictable
        n += x[j] != 0
    return n


@njit(**COMPILED)
def multiply(w, x, out, on):
    """out = x w. w: (len(x), len(out)); on: scratch of len(x) + 1 integers."""
    n = switched_on(x, on)
    for k in range(len(out)):
        out[k] = 0
    for q in range(0, n - 3, 4):
        a, b, c, d = on[q], on[q + 1], on[q + 2], on[q + 3]
        x_a, x_b, x_c, x_d = x[a], x[b], x[c], x[d]
        for k in range(len(out)):
            out[k] += (x_a * w[a, k] + x_b * w[b, k]) + (x_c * w[c, k] + x_d * w[d, k])
    for q in range(n - n % 4, n):
        a = on[q]
        x_a = x[a]
        for k in range(len(out)):
            out[k] += x_a * w[a, k]


@njit(**COMPILED)
def forward(w, hidden, scale, on):
    """x^(h) = ReLU(W^(h) x^(h-1)) / √m from hidden[0] into hidden[1:]. w: (D, m, m); hidden: (D + 1, m)."""
    for layer in range(len(w)):
        out = hidden[layer + 1]
        multiply(w[layer], hidden[layer], out, on)
        for k in range(len(out)):
            # Keeps NaN.
            out[k] = out[k] * scale if not out[k] <= 0 else out[k] * 0


@njit(**COMPILED)
def backward(w, hidden, top, back, scale, to_input, on):
    """Back-propagate `top`, the gradient at x^(D). The gradient of W^(l+1) is hidden[l] ⊗ back[l].

    With to_input, back[D] receives the gradient at x^(0). back: (D + 1, m).
    """
    depth, m = w.shape[0], w.shape[1]
    for k in range(m):
        back[depth - 1, k] = top[k] * scale if hidden[depth, k] > 0 else top[k] * 0
    for layer in range(depth - 1, 0, -1):
        for k in range(m):
            back[layer - 1, k] = 0
        for q in range(switched_on(hidden[layer], on)):
            j = on[q]
            total = scale * 0
            for k in range(m):
                total += w[layer, j, k] * back[layer, k]
            back[layer - 1, j] = total * scale
    if to_input:
        for j in range(m):
            total = scale * 0
            for k in range(m):
                total += w[0, j, k] * back[0, k]
            back[depth, j] = total


@njit(**COMPILED)
def add_outer(matrix, amount, x, y, on):
    """matrix += amount x ⊗ y. matrix: (len(x), len(y))."""
    for q in range(switched_on(x, on)):
        j = on[q]
        pull = amount * x[j]
        for k in range(len(y)):
            matrix[j, k] += pull * y[k]


@njit(**COMPILED)
def outside_norm(w, centre, amount, x, y):
    """‖w + amount x ⊗ y - centre‖_F, in double precision."""
    total = 0.0
    for j in range(w.shape[0]):
        pull = amount * x[j]
        for k in range(w.shape[1]):
            off = w[j, k] + pull * y[k] - centre[j, k]
            total += np.float64(off) * np.float64(off)
    return np.sqrt(total)


@njit(**COMPILED)
def mix(weights, source, target):
    """target_c = Σ_e weights_ce source_e: gossip, line 12. weights: (C, C); source, target: (C, n)."""
    n_critics, n = source.shape
    for c in range(n_critics):
        first = weights[c, 0]
        for k in range(n):
            target[c, k] = first * source[0, k]
        for e in range(1, n_critics):
            share = weights[c, e]
            if share != 0:
                for k in range(n):
                    target[c, k] += share * source[e, k]
