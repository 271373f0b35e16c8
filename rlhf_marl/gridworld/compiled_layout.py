"""Data layout of the compiled functions: numeric options, shared tables, per-seed arrays and scratch space."""

from typing import NamedTuple

import numpy as np

from rlhf_marl.gridworld.spread import N_ACTIONS

TD_Q_LITERAL, TD_Q, TD_V, Q_VALUE, COUNTERFACTUAL = range(5)
SIGNAL_CODES = {  # the signals of algorithm/signals.py that have a compiled port
    "td_q_literal": TD_Q_LITERAL,
    "td_q": TD_Q,
    "td_v": TD_V,
    "q_value": Q_VALUE,
    "counterfactual": COUNTERFACTUAL,
}
REACHED, REDRAWN, NONE = range(3)
SHARED, CLOSEST, OWNED = range(3)
SPLIT_CODES = {"shared": SHARED, "closest": CLOSEST, "owned": OWNED}  # those of spread.py
# Columns of the statistics: sums over the iterations (or steps) of a logging interval; see training.py.
REWARD, VALUE, POSITIVE, ENTROPY, PROJECTED, SKIPPED = range(6)
N_STATISTICS = 6


class Options(NamedTuple):
    """A Setting in the kernel's form: choices as the integer codes above, conditions as booleans."""

    critic_steps: int
    actor_samples: int
    signal: int
    bootstrap: int
    inverse: bool
    restart: bool
    average: bool
    linear: bool
    exact: bool
    gossiped_actors: bool
    centralised: bool
    local: bool
    own_share: float
    split: int
    restart_kernel: bool
    discount: float
    reward_shift: float
    reward_scale: float


class Tables(NamedTuple):
    """Constants shared by all seeds.

    numbers: γ, α, β, B, 1 / √m, in the precision of the weights: mixed precision would slow the inner loops.
    scaled (65, 2), distance (65, 65), next_cell (65, 5): see encoding.py and spread.py.
    readers: (N,) index of the critic that each agent's actor uses.
    """

    numbers: np.ndarray
    scaled: np.ndarray
    distance: np.ndarray
    next_cell: np.ndarray
    readers: np.ndarray


class Seed(NamedTuple):
    """State of one seed. N agents. C critics: N, N + 1 with Algorithm 3's yardstick, 1 for Algorithm 3. m is padded.

    landmarks: (N,). power: (C, C) gossip weights of the critics.
    critic_h (d, m), critic_0 (D, m, m), critic_b (m,): fixed. critics (2, C, D, m, m): after gossip, before gossip.
    A linear critic has H = I, (d, d), and weights (1, 1, d).
    bounds: (2, C, D) upper bounds of the distance to W(0), for the iterate and for the average.
    actor_h (N, d', m), actor_w (N, D, m, m), actor_b (N, 5, m).
    values (65, 65): V of two agents' policies for an exact critic, else (1, 1).
    positions (N,), age (1,). uniforms (steps, 2 N + 1), redrawn (steps, N): noise of the upcoming steps.
    statistics: (N_STATISTICS,) running sums.
    """

    landmarks: np.ndarray
    power: np.ndarray
    critic_h: np.ndarray
    critic_0: np.ndarray
    critic_b: np.ndarray
    actor_h: np.ndarray
    actor_w: np.ndarray
    actor_b: np.ndarray
    critics: np.ndarray
    values: np.ndarray
    bounds: np.ndarray
    positions: np.ndarray
    age: np.ndarray
    uniforms: np.ndarray
    redrawn: np.ndarray
    statistics: np.ndarray


class Scratch(NamedTuple):
    """Scratch arrays. Slot 0 holds the critic's K samples in turn; then the M slots hold the actors' samples."""

    cells: np.ndarray
    reached: np.ndarray
    actions: np.ndarray
    next_actions: np.ndarray
    other: np.ndarray
    on: np.ndarray
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
    spare_x0: np.ndarray
    rate: np.ndarray
    shares: np.ndarray
    mixed: np.ndarray


def make_scratch(o: Options, seed: Seed) -> Scratch:
    """Allocate scratch arrays for seeds of this shape."""
    slots, kind = o.actor_samples, seed.critics.dtype
    (n, depth, m), d_actor, (d, d0) = seed.actor_w.shape[:3], seed.actor_h.shape[1], seed.critic_h.shape
    _, n_critics, critic_depth = seed.critics.shape[:3]

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
        on=integers(max(m, d, d0) + 1),
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
        spare_x0=floats(d0),
        rate=floats(1),
        shares=floats(o.critic_steps),
        mixed=floats(n, m * max(d_actor, depth * m, N_ACTIONS)),
    )
