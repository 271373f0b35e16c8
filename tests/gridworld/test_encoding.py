import numpy as np

from rlhf_marl.gridworld.encoding import encode_actor, encode_critic
from rlhf_marl.gridworld.spread import N_CELLS


def test_encodings_have_length_one_and_tell_states_apart():
    rng = np.random.default_rng(0)
    cells, actions = rng.integers(N_CELLS, size=(500, 3)), rng.integers(5, size=(500, 3))
    for x in (encode_critic(cells), encode_critic(cells, actions), encode_actor(cells, 2)):
        np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1)
    everywhere = encode_critic(np.stack(np.divmod(np.arange(N_CELLS**2), N_CELLS), -1))
    assert len(np.unique(everywhere.round(9), axis=0)) == N_CELLS**2
    np.testing.assert_allclose(encode_actor(cells, 1)[:, :6], encode_critic(cells[:, [1, 2, 0]])[:, :6])


def test_cells_by_hand():
    """Corners (0, 0) and (12, 4): coordinates -1, -1 and 1, 1, and the constant 1, over their length, the root of 5."""
    np.testing.assert_allclose(encode_critic(np.array([0, 64])), np.array([-1, -1, 1, 1, 1]) / 5**0.5)
    np.testing.assert_allclose(encode_actor(np.array([0, 64]), 1), np.array([1, 1, -1, -1, 1]) / 5**0.5)
    actions = encode_critic(np.array([64]), np.array([3]))
    np.testing.assert_allclose(actions, np.array([1, 1, 1, 0, 0, 0, 1, 0]) / 2)
