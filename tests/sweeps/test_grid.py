"""--over options, arms and their folders, and what is refused before anything is trained."""

import pytest
import yaml

from rlhf_marl.errors import UsageError
from rlhf_marl.sweeps.grid import arm_name, parse_over


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("seed=0..4", [0, 1, 2, 3, 4]),
        ("seed=0..1,7", [0, 1, 7]),
        ("topology.gossip_rounds=0,20", [0, 20]),
        ("actor.step_size=1e-3,0.1", [0.001, 0.1]),
        ("topology.graph=ring", ["ring"]),
        ("critic.radius=null,1.5", [None, 1.5]),
        ("critic.average=true,false", [True, False]),
        ("agents.reward_model=[a.yaml, b.yaml],[c.yaml, d.yaml]", [["a.yaml", "b.yaml"], ["c.yaml", "d.yaml"]]),
        ("prompts.question='yes, or no?',why?", ["yes, or no?", "why?"]),
    ],
)
def test_values_of_a_key(option, values):
    assert list(parse_over([option]).values()) == [values]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["seed"], "'seed' given; write KEY=VALUES"),
        (["=1"], "write KEY=VALUES"),
        (["seed="], "write KEY=VALUES"),
        (["seed=1,,2"], "seed: an empty value given"),
        (["seed=4..0"], "seed: 4..0 given; a range runs upwards"),
        (["seed=0..99999"], "at most 10,000 values"),
        (["seed=0", "seed=1"], "seed is given twice"),
    ],
)
def test_a_wrong_option_is_one_line(options, words):
    with pytest.raises(UsageError, match=r"^--over: ") as refused:
        parse_over(options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_combination_is_a_run_and_the_first_arm_comes_first(planned, tmp_path):
    runs = planned({"topology.gossip_rounds": [0, 20], "seed": [3, 1], "actor.step_size": [0.001, 0.002]})
    assert [(run.config.topology.gossip_rounds, run.config.actor.step_size, run.config.seed) for run in runs] == [
        *((0, 0.001, 3), (0, 0.001, 1), (0, 0.002, 3), (0, 0.002, 1)),
        *((20, 0.001, 3), (20, 0.001, 1), (20, 0.002, 3), (20, 0.002, 1)),
    ]
    assert runs[0].path == tmp_path / "sweep" / "topology.gossip_rounds=0,actor.step_size=0.001" / "3"
    assert runs[0].values == {"topology.gossip_rounds": 0, "actor.step_size": 0.001}


def test_without_another_key_there_is_one_arm_and_without_a_seed_one_run_of_each(planned, tmp_path):
    assert [run.path.relative_to(tmp_path) for run in planned({"seed": [0, 1]})] == [
        (tmp_path / "sweep" / "default" / seed).relative_to(tmp_path) for seed in ("0", "1")
    ]
    assert [(run.arm, run.seed) for run in planned({"turns": [1, 2]}, seed=9)] == [("turns=1", 9), ("turns=2", 9)]


def test_folders_of_other_values_are_safe_and_different():
    names = [arm_name({"prompts.question": text}) for text in ("../../x", ".. .. x", "a" * 300, "a" * 301, "é\x1b[31m")]
    assert len(set(names)) == 5
    for name in names:
        assert len(name) < 140
        assert set(name) < set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,=+-")


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({}, "--over: missing"),
        ({"seed": [0, 0]}, "--over: seed: 0 is given twice"),
        ({"topology.grph": ["ring"]}, "tiny.yaml with topology.grph = ring: topology.grph: unknown key"),
        ({"seed": [0], "turns": [0]}, "tiny.yaml with turns = 0, seed = 0: turns: 0 given"),
        ({"seed": range(200), "iterations": range(1, 200)}, "39,800 runs; at most 10,000"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_trained(planned, tmp_path, over, words):
    with pytest.raises(UsageError) as refused:
        planned(over)
    assert words in str(refused.value)
    assert not (tmp_path / "sweep").exists()


def test_a_folder_with_a_run_of_another_config_is_refused(planned, tmp_path, tiny_config):
    run = planned({"seed": [0]})[0]
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(tiny_config.model_dump(mode="json") | {"discount": 0.25}))
    with pytest.raises(UsageError, match=r"^sweep: .*/0 was started with discount = 0.25, now it is 0.5; choose"):
        planned({"seed": [0]})
