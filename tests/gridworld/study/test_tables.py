import numpy as np

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.claims import Verdict
from rlhf_marl.gridworld.study.config import StudyConfig
from rlhf_marl.gridworld.study.tables import claims_table, diagnostics_table, offset_table, signals_table
from tests.gridworld.study.conftest import made_up


def test_a_claim_is_a_row_and_a_regime_a_column():
    config = StudyConfig(regimes={"one": {}, "two": {}}, experiments=["fig2"])
    numbers = {"mean": 1.234, "low": 0.5, "high": 2.0, "negligible": 0.1, "p": 0.0404}
    verdicts = [
        Verdict("Figure 2", "up", "one", "fig2", "reward per step", verdict="undetermined", **numbers),
        Verdict("Figure 2", "up", "two", "fig2", "reward per step", verdict="holds", **numbers),
        Verdict("Table 1", "fast", "two", "critic", "power of 1/t", verdict="holds", **numbers),
    ]
    shown = "+1.23 [+0.50, +2.00], p = 0.040"
    assert claims_table(verdicts, config)[2:] == [
        "| source | claim | one | two |",
        "| --- | --- | --- | --- |",
        f"| Figure 2 | up | **undetermined** {shown} | **holds** {shown} |",
        "| Table 1 | fast |  | **holds** +1.23 [+0.50, +2.00] (power of 1/t), p = 0.040 |",
    ]


def test_shares_of_the_way_by_hand():
    """Random policies get -8 and the best -2: -5 is half the way, and the best constant action's -7 a sixth."""
    arms = {"td_q": made_up(Setting(), np.full((3, 5), -5.0)), "td_v": made_up(Setting(), np.full((3, 5), -2.0))}
    lines = signals_table({"one": {"signals": arms}, "two": {"fig2": arms}})
    assert lines[2].endswith("the best constant joint action gets 0.17 [0.17, 0.17].")
    assert lines[4:] == [
        "| signal | one |",
        "| --- | --- |",
        "| `td_q` | 0.50 [0.50, 0.50] |",
        "| `td_v` | 1.00 [1.00, 1.00] |",
    ]
    offset = offset_table({"one": {"offset": {"δ, r": arms["td_q"]}}})
    assert offset[-1] == (
        "| one | δ, r | 0.500 [0.500, 0.500] | 0.50 [0.50, 0.50] | 0.00 [0.00, 0.00] | 0.5 [0.5, 0.5] | "
        "0.50 [0.50, 0.50] |"
    )


def test_diagnostics_need_two_agents():
    """Arms without them, of more agents, have no row; without any row there is no table."""
    arms = {"td_q": made_up(Setting(), np.zeros((3, 5))), "td_v": made_up(Setting(), np.zeros((3, 5)))}
    assert diagnostics_table({"one": {"signals": arms}}) == []
    numbers = {"critic_error": 1.5, "critic_correlation": 0.25, "msbe": 2.0, "cosine": -0.5}
    numbers |= {"messages": 4e6, "bytes": 1.6e9}
    arms["td_v"].arrays.update({name: np.full(3, number) for name, number in numbers.items()})
    lines = diagnostics_table({"one": {"signals": arms}})
    assert [line for line in lines if line.startswith("| one")] == [
        "| one | td_v | 1.5 [1.5, 1.5] | 0.25 [0.25, 0.25] | 2 [2, 2] | -0.50 [-0.50, -0.50] | 4,000,000 | 1,600 MB |"
    ]
