"""The stopwatch: all time counts for exactly one stage."""

import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from click.testing import CliRunner

from rlhf_marl.cli.commands import cli
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.perf.stopwatch import STAGES, stage, stopwatch


def test_a_stage_inside_a_stage_counts_for_the_inner_alone():
    began = time.perf_counter()
    with stopwatch(torch.device("cpu")) as watch:
        time.sleep(0.01)
        with stage("critic"):
            time.sleep(0.02)
            with stage("gossip"):
                time.sleep(0.04)
            time.sleep(0.02)
        first = watch.lap()
        with stage("update"):
            time.sleep(0.03)
        second = watch.lap()
    wall = time.perf_counter() - began
    assert sum(first.values()) + sum(second.values()) == pytest.approx(wall, abs=0.005)
    for name, least in (("other", 0.01), ("critic", 0.04), ("gossip", 0.04)):
        assert first[name] >= least
    assert second["update"] >= 0.03
    assert second["critic"] == second["gossip"] == 0
    assert watch.total == {name: first[name] + second[name] for name in STAGES}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("rlhf_marl.perf.stopwatch.time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_stages_by_hand(clock):
    with stopwatch(torch.device("cpu")) as watch:
        clock.seconds += 1
        with stage("generate"):
            clock.seconds += 2
            with stage("gossip"):
                clock.seconds += 4
            clock.seconds += 8
            first = watch.lap()  # in the middle of a stage
            clock.seconds += 16
        clock.seconds += 32
        second = watch.lap()
    zero = dict.fromkeys(STAGES, 0.0)
    assert first == zero | {"other": 1.0, "generate": 10.0, "gossip": 4.0}
    assert second == zero | {"other": 32.0, "generate": 16.0}
    assert watch.total == zero | {"other": 33.0, "generate": 26.0, "gossip": 4.0}
    assert watch.lap() == zero


def test_stages_report_to_the_innermost_stopwatch_and_to_none_afterwards(clock):
    with stopwatch(torch.device("cpu")) as outer:
        with stopwatch(torch.device("cpu")) as inner, stage("score"):
            clock.seconds += 1
        with stage("critic"):
            clock.seconds += 2
    with stage("update"):
        clock.seconds += 4
    assert inner.lap()["score"] == 1.0
    seconds = outer.lap()
    assert (seconds["score"], seconds["critic"], seconds["update"]) == (0.0, 2.0, 0.0)


def test_an_error_ends_its_stage():
    with stopwatch(torch.device("cpu")) as watch:
        with pytest.raises(KeyError), stage("score"):
            raise KeyError
        time.sleep(0.01)
        assert watch.lap()["other"] >= 0.01


def test_without_a_stopwatch_stages_do_nothing():
    with stage("score"):
        pass


def test_profile_of_a_run(tiny_content, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny_content))
    command = ["train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run"), "--profile"]
    began = time.perf_counter()
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    wall = time.perf_counter() - began
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(list(row["stage_seconds"]) == list(STAGES) for row in rows)
    assert all(sum(row["stage_seconds"].values()) == pytest.approx(row["seconds"], rel=0.02) for row in rows)
    counted = sum(row["seconds"] for row in rows if row["agent"] == 0)
    assert 0 < counted < wall
    for name in (*STAGES, "while generating"):
        assert name in result.stderr
