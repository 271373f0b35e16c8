import numpy as np

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS
from rlhf_marl.gridworld.study.figures import draw
from tests.gridworld.study.conftest import made_up


def test_a_figure_names_its_arms_and_baselines(tmp_path):
    curve = np.linspace(-8, -4, 5) + np.array([[0.0], [0.5], [1.0]])
    arms = {f"N = {n}": made_up(Setting(n_agents=n), curve) for n in (2, 5)}
    draw(EXPERIMENTS["fig8"], "printed", arms, tmp_path / "figures" / "fig8")
    text = (tmp_path / "figures" / "fig8.svg").read_text("utf-8")
    words = ("Figure 8; printed", "sampled team reward per step", "best policy (N = 2)", "bound of the best (N = 5)")
    assert [word for word in (*words, *arms) if word not in text] == []
    assert (tmp_path / "figures" / "fig8.png").stat().st_size > 1000
