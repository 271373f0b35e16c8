"""The fair baseline of gossip: critics of the mean reward, whose weights never meet."""

import numpy as np
import pytest

from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.config import load_study, settings
from rlhf_marl.gridworld.study.experiments import AVERAGED
from rlhf_marl.gridworld.training import train

SETTING = Setting(
    width=6, depth=2, iterations=30, signal="td_v", critic_steps=5, actor_samples=3, start="warm", critic_step_size=0.1
)


@pytest.mark.parametrize("split", ["closest", "owned"])
def test_averaged_rewards_without_gossip_are_algorithm_3(split):
    """Each agent has the critic that Algorithm 3 has one of; with exact averaging of weights they are close to it."""

    def policies(**changes):
        setting = SETTING.model_copy(update=changes)
        draws = draw_all(setting, 0, range(2))
        return train(setting, 0, range(2), [30], dtype=np.float64, draws=draws).policies[0].w

    centralised = policies(split=split, control="centralised")
    np.testing.assert_allclose(policies(split="shared", gossip_rounds=0), centralised, atol=1e-9)
    assert np.abs(policies(split=split, gossip_rounds=0) - centralised).max() > 1e-3  # rewards are not averaged


@pytest.mark.parametrize("experiment", ["fig5", "owned", "slow_graph"])
def test_gossip_experiments_have_the_baseline(experiment):
    arms = settings(load_study("configs/study.yaml"), "working", experiment)
    averaged, none = arms[AVERAGED], arms["0 rounds"]
    assert (averaged.split, averaged.gossip_rounds) == ("shared", 0)
    assert none.split == {"fig5": "closest", "owned": "owned", "slow_graph": "closest"}[experiment]
    assert averaged == none.model_copy(update={"split": "shared"})  # nothing else differs
