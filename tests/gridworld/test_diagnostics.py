import numpy as np
import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld import diagnostics as d
from rlhf_marl.gridworld import exact
from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import NEXT_CELL
from rlhf_marl.gridworld.training import Policies, policy_table, train

SMALL = Setting(width=6, depth=2, signal="td_v", actor_output_scale=0.3, discount=0.8)


@pytest.fixture(scope="module")
def small():
    """Draws, policies and their tables of two seeds, untrained."""
    draws = draw_all(SMALL, 3, range(2))
    policies = Policies(draws.actor_h, draws.actor_w, draws.actor_b)
    return draws, policies, policy_table(policies)


def simulated(table, rng, boards, steps, reset_rate):
    """Cells, actions and cells reached of many boards, one step after the other, by drawing alone."""
    cells = rng.integers(65, size=(boards, 2))
    for step in range(steps):
        rows = np.stack([table[0][cells[:, 0], cells[:, 1]], table[1][cells[:, 1], cells[:, 0]]], axis=1)
        actions = (rng.random((boards, 2, 1)) >= rows.cumsum(-1)[..., :4]).sum(-1)
        reached = NEXT_CELL[cells, actions]
        yield cells, actions, reached
        again = rng.random(boards) < reset_rate if reset_rate is not None else np.full(boards, (step + 1) % 10 == 0)
        cells = np.where(again[:, None], rng.integers(65, size=(boards, 2)), reached)


@pytest.mark.parametrize("reset", ["periodic", "restart_kernel"])
def test_visits_equal_simulated_ones(small, reset):
    setting = SMALL.model_copy(update={"reset": reset})
    nu = d.visits(small[2][0], setting)
    assert nu.sum() == pytest.approx(1)
    rate = None if reset == "periodic" else 1 - setting.discount
    column = [
        (cells // 5).mean(0) for cells, _, _ in simulated(small[2][0], np.random.default_rng(0), 20_000, 30, rate)
    ]
    expected = [(nu.sum(1 - i) * (np.arange(65) // 5)).sum() for i in range(2)]
    start = 0 if reset == "periodic" else 15  # by then the chain has forgotten that all boards began together
    np.testing.assert_allclose(np.mean(column[start:], axis=0), expected, atol=0.03)
    assert np.abs(np.array(expected) - 6).max() > 0.1  # not just the uniform distribution


@pytest.mark.parametrize("bootstrap", ["reached", "redrawn", "none"])
def test_exact_values_equal_simulated_returns(small, bootstrap):
    """With the restart kernel: returns from one state, averaged over many boards."""
    setting = SMALL.model_copy(update={"reset": "restart_kernel", "bootstrap": bootstrap})
    draws, _, tables = small
    team = exact.reward_table(draws.landmarks[0])
    value = d.exact_state_value(team, tables[0], d.chain(setting))
    rng, boards = np.random.default_rng(1), 4000
    cells = np.tile([3, 40], (boards, 1))
    total, weight = np.zeros(boards), np.ones(boards)
    for _ in range(60):
        rows = np.stack([tables[0][0][cells[:, 0], cells[:, 1]], tables[0][1][cells[:, 1], cells[:, 0]]], axis=1)
        cells = NEXT_CELL[cells, (rng.random((boards, 2, 1)) >= rows.cumsum(-1)[..., :4]).sum(-1)]
        total += weight * team[cells[:, 0], cells[:, 1]]
        weight *= setting.discount
        again = rng.random(boards) >= setting.discount
        if bootstrap == "none":
            weight[again] = 0
        elif bootstrap == "redrawn":
            cells[again] = rng.integers(65, size=(again.sum(), 2))
    error = 4 * total.std() / boards**0.5
    assert value[3, 40] == pytest.approx(total.mean(), abs=error)
    assert error < 0.05 * abs(value[3, 40])


def test_the_exact_critic_is_perfect(small):
    draws, _, tables = small
    team, pi, nu = exact.reward_table(draws.landmarks[0]), d.joint(tables[0]), d.visits(tables[0], SMALL)
    for bootstrap in ("reached", "redrawn", "none"):
        c = d.chain(SMALL.model_copy(update={"bootstrap": bootstrap}))
        v = d.exact_state_value(team, tables[0], c)
        q = d.backed_up(team, v, c)
        np.testing.assert_allclose((pi * q).sum((-2, -1)), v, atol=1e-5)
        for estimate in (v, q):
            assert d.bellman_error(estimate, team, tables[0], nu, c) < 1e-9
            assert d.bellman_error(estimate + 1, team, tables[0], nu, c) > 1e-3
    error, correlation = d.critic_quality(2 * v + 3, v, nu)
    assert correlation == pytest.approx(1)
    assert error == pytest.approx(np.sqrt((nu * (v + 3) ** 2).sum()))
    assert d.critic_quality(-v, v, nu)[1] == pytest.approx(-1)
    assert d.critic_quality(np.zeros_like(v), v, nu)[1] == 0


def moved(policies, agent, amount):
    """Policies whose agent's flat weights are moved along `amount`."""
    arrays = []
    for array in (policies.h, policies.w, policies.b):
        change = np.zeros_like(array[0])
        size = change[agent].size
        change[agent] = amount[:size].reshape(change[agent].shape)
        arrays.append(array + change)
        amount = amount[size:]
    return Policies(*arrays)


def slope(policies, agent, value, along, step=1e-5):
    """Central difference of value(table of seed 0)."""
    up, down = (value(policy_table(moved(policies, agent, sign * step * along))[0]) for sign in (1, -1))
    return (up - down) / (2 * step)


def test_the_exact_gradient_equals_finite_differences(small):
    draws, policies, tables = small
    team = exact.reward_table(draws.landmarks[0])
    gradient = d.direction(SMALL, policies, 0, d.exact_weights(team, tables[0]))
    rng = np.random.default_rng(2)
    for agent in range(2):
        along = rng.standard_normal(gradient.shape[1])
        measured = slope(policies, agent, lambda t: exact.policy_values(team[None], t[None], 10)[0], along, 1e-7)
        assert gradient[agent] @ along == pytest.approx(measured, rel=1e-4)


def test_signals_point_where_theory_says(small):
    """Lemma 4.3 with exact critics and the restart kernel: td_v, q_value and counterfactual follow the gradient of the
    discounted J from finite differences; the Q critic's TD error has no direction at all."""
    draws, policies, tables = small
    team, power = exact.reward_table(draws.landmarks[0]), np.full((2, 2), 0.5)
    setting = SMALL.model_copy(update={"reset": "restart_kernel", "bootstrap": "reached"})
    nu, c = d.visits(tables[0], setting), d.chain(setting)
    v = d.exact_state_value(team, tables[0], c)
    q = d.backed_up(team, v, c)
    rng = np.random.default_rng(3)
    along = rng.standard_normal((2, d.direction(SMALL, policies, 0, np.zeros((2, 65, 65, 5))).shape[1]))

    def discounted(table):
        return d.exact_state_value(team, table, c).mean() * (1 - setting.discount)

    expected = [[slope(policies, agent, discounted, a) for a in along] for agent in range(2)]
    for signal in ("td_v", "q_value", "counterfactual", "td_q", "td_q_literal"):
        one = setting.model_copy(update={"signal": signal})
        estimates = np.stack([v, v] if signal == "td_v" else [q, q])
        weights = d.actor_weights(one, estimates, np.stack([team, team]), power, tables[0], nu)
        measured = d.direction(one, policies, 0, weights) @ along.T
        if signal.startswith("td_q"):
            np.testing.assert_allclose(measured, 0, atol=1e-3)
        else:
            np.testing.assert_allclose(measured, expected, rtol=2e-3, atol=1e-4)


def test_line_16_on_average(small):
    """The mean signal by action, from simulated samples: wrong critics, split rewards, little gossip."""
    tables = small[2]
    table, power = tables[0], np.array([[0.8, 0.2], [0.2, 0.8]])
    rng = np.random.default_rng(4)
    rewards = rng.standard_normal((2, 65, 65))
    for signal, credit in (("td_v", "consensus"), ("td_q", "consensus"), ("td_v", "local"), ("q_value", "consensus")):
        s = SMALL.model_copy(update={"signal": signal, "credit": credit, "bootstrap": "reached"})
        estimates = rng.standard_normal((2, 65, 65) if signal == "td_v" else (2, 65, 65, 5, 5))
        weights = d.actor_weights(s, estimates, rewards, power, table, d.visits(table, s))
        totals, count = np.zeros((2, 5)), 0
        for cells, a, reached in simulated(table, rng, 30_000, 10, None):
            here, there = (estimates[(slice(None), *x.T)] for x in (cells, reached))
            if signal != "td_v":
                rows = np.stack([table[0][reached[:, 0], reached[:, 1]], table[1][reached[:, 1], reached[:, 0]]], 1)
                b = (rng.random((len(cells), 2, 1)) >= rows.cumsum(-1)[..., :4]).sum(-1)
                here, there = (
                    here[:, np.arange(len(a)), a[:, 0], a[:, 1]],
                    there[:, np.arange(len(a)), b[:, 0], b[:, 1]],
                )
            paid = rewards[:, reached[:, 0], reached[:, 1]]
            if signal == "q_value":
                signals = here
            elif credit == "local":
                signals = power.diagonal()[:, None] * paid + power @ (s.discount * there - here)
            else:
                signals = power @ (paid + s.discount * there - here)
            for i in range(2):
                totals[i] += np.bincount(a[:, i], signals[i], 5)
            count += len(cells)
        np.testing.assert_allclose(weights.sum((1, 2)), totals / count, atol=0.015)


def test_a_whole_run_is_diagnosed():
    for changes in ({}, {"signal": "td_q", "yardstick": True}, {"critic": "linear"}, {"control": "centralised"}):
        s = SMALL.model_copy(update={"critic_step_size": 0.02, "start": "warm", "reward_shift": 8.0} | changes)
        draws = draw_all(s, 3, range(2))
        history = train(s, 3, range(2), [1, 3000], draws=draws)
        after = d.diagnose(s, draws, history.policies[-1], history.critics)
        before = d.diagnose(s, draws, history.policies[0], train(s, 3, range(2), [1], draws=draws).critics)
        assert all(np.isfinite(after[name]).all() and after[name].shape == (2,) for name in after)
        assert (after["msbe"] < before["msbe"]).all() or changes.get("signal") == "td_q"
        if not changes:
            assert (after["critic_correlation"] > 0.3).all()
            assert (after["cosine"] > 0.1).all()
    with pytest.raises(UsageError, match="3 agents"):
        d.diagnose(Setting(n_agents=3), draws, history.policies[-1], history.critics)


def test_communication_by_hand():
    """Ring of four: 8 directed links. T = 100, 3 rounds for critics and for TD errors; D m² = 8 weights, M = 2."""
    s = Setting(
        n_agents=4, iterations=100, gossip_rounds=3, width=2, depth=2, actor_samples=2, graph="ring",
        matrix="metropolis_hastings",
    )  # fmt: skip
    sent = d.communication(s, draw_all(s, 0, range(2)))
    assert sent["rounds"].tolist() == [600, 600]
    assert sent["messages"].tolist() == [4800, 4800]
    assert sent["bytes"].tolist() == [8 * 300 * (8 + 2) * 4] * 2
    own = s.model_copy(update={"signal": "q_value"})
    assert d.communication(own, draw_all(own, 0, range(1)))["rounds"].tolist() == [300]
