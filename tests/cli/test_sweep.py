"""`rlhf-marl sweep` and `rlhf_marl.sweep`; quickly with a stub for training, slowly with the tiny model."""

import json

import pytest
import yaml

import rlhf_marl
from tests.sweeps.conftest import stub as stub


@pytest.fixture
def config_file(quick_content, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(quick_content))
    return path


def test_failures_are_named_at_the_end_and_the_others_are_kept(run, stub, config_file, tmp_path):
    options = ["--out", "out", "--over", "actor.step_size=0.001,0.5", "--over", "seed=0,1"]
    code, printed, errors = run("sweep", "tiny.yaml", *options)
    assert code == 1
    assert "4 runs, 0 of them finished before; output in out; 1 at a time" in errors
    assert "actor.step_size=0.001, seed 1: finished" in errors
    assert errors.splitlines()[-3:] == [
        "error: 2 of 4 runs failed; the same command tries them again",
        "error: out/actor.step_size=0.5/0: the service is down",
        "error: out/actor.step_size=0.5/1: the service is down",
    ]
    assert printed.splitlines()[-2:] == ["out/sweep.html", "out/sweep.json"]
    assert "actor.step_size=0.001 (2 seeds)" in printed
    assert (tmp_path / "out" / "sweep.html").stat().st_size > 1_000_000


def test_a_frame_has_a_row_per_run_and_agent(stub, quick_content, tmp_path):
    """The stub's reward is seed + gossip_rounds + agent + update; in ten updates the last fifth is 8.5."""
    over = {"topology.gossip_rounds": [0, 20], "actor.step_size": [0.001, 0.5], "seed": range(2)}
    frame = rlhf_marl.sweep(quick_content | {"iterations": 10}, over, out=tmp_path / "out", jobs=2)
    assert len(frame) == 16
    done = frame[frame["finished"]]
    assert done["last_fifth"].tolist() == [8.5, 9.5, 9.5, 10.5, 28.5, 29.5, 29.5, 30.5]
    assert done["topology.gossip_rounds"].tolist() == [0] * 4 + [20] * 4
    assert done["reward_model"].tolist() == ["vowels", "length"] * 4
    assert frame[~frame["finished"]]["last_fifth"].isna().all()
    assert frame["held_out"].isna().all()


@pytest.mark.slow
def test_a_sweep_from_its_config_to_its_results(run, config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(rlhf_marl.__path__[0]).removesuffix("/rlhf_marl"))
    options = ["--over", "agents.0.reward_model=vowels.yaml,no.yaml", "--over", "seed=0", "--jobs", "2"]
    code, _, errors = run("sweep", "tiny.yaml", "--out", "out", *options)
    assert code == 1
    assert "error: 1 of 2 runs failed; the same command tries them again" in errors
    assert "error: out/agents.0.reward_model=no.yaml/0: " in errors
    assert "agents.0.reward_model: 'no.yaml' does not exist" in errors
    (tmp_path / "no.yaml").write_text((tmp_path / "vowels.yaml").read_text())
    code, printed, errors = run("sweep", "tiny.yaml", "--out", "out", *options)
    assert code == 0, errors
    assert "2 runs, 1 of them finished before" in errors
    assert "agents.0.reward_model=vowels.yaml, seed 0: training" not in errors
    assert printed.splitlines()[-2:] == ["out/sweep.html", "out/sweep.json"]
    numbers = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["reward"]["mean"] for row in numbers["differences"]] == [0.0, 0.0, 0.0]  # the same card by another name
    assert (tmp_path / "out" / "sweep.html").stat().st_size > 1_000_000
    frame = rlhf_marl.sweep("tiny.yaml", {"agents.0.reward_model": ["vowels.yaml"], "seed": [0]}, out="out")
    assert frame[["agent", "reward_model", "finished"]].values.tolist() == [[0, "vowels", True], [1, "length", True]]
    change = frame["last_fifth"] - frame["first_fifth"]
    speakers = numbers["arms"][0]["speakers"]
    assert change.tolist() == pytest.approx([speaker["change"]["mean"] for speaker in speakers[:2]], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "Error: Missing option '--over'."),
        (["--over", "seed"], "error: --over: 'seed' given; write KEY=VALUES"),
        (["--over", "topology.grph=ring"], "topology.grph: unknown key (value 'ring'); did you mean 'graph'?"),
        (["--over", "seed=1", "--turns", "0"], "turns: 0 given"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(run, config_file, tmp_path, options, line):
    code, _, errors = run("sweep", str(config_file), *options)
    assert code == 2
    assert line in errors.splitlines()[-1]
    assert not (tmp_path / "sweeps").exists()
