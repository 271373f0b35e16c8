"""Figures of made-up curves: what stands in the SVG."""

import numpy as np
import pytest

from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS
from rlhf_marl.gridworld.study.figures import draw
from tests.gridworld.study.conftest import made_up

CURVE = np.linspace(-8, -4, 5) + np.array([[0.0], [0.5], [1.0]])


@pytest.mark.parametrize(
    ("experiment", "numbers", "words"),
    [
        (
            "fig8",
            {"N = 2": 2, "N = 3": 3},
            {"sampled team reward per step", "best policy (N = 2)", "bound of the best (N = 3)", "Figure 8; literal"},
        ),
        (
            "rate",
            {"constant": 2, "α / 3t": 2},
            {"exact team reward per step", "best policy", "best constant action", "iteration t", "1 / t"},
        ),
    ],
)
def test_a_figure_names_its_arms_and_baselines(tmp_path, experiment, numbers, words):
    arms = {arm: made_up(Setting(n_agents=n), CURVE) for arm, n in numbers.items()}
    draw(EXPERIMENTS[experiment], "literal", arms, tmp_path / "figures" / experiment)
    text = (tmp_path / "figures" / f"{experiment}.svg").read_text("utf-8")
    assert [word for word in (*words, *arms) if word not in text] == []
    assert (tmp_path / "figures" / f"{experiment}.png").stat().st_size > 1000
