"""A sweep whose runs are spread over a Ray cluster, each in a process of its own."""

import json
import os
import threading
import time

import pandas as pd
import pytest

import rlhf_marl
from rlhf_marl.config import check_config, dump_config
from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.sweeps import processes
from rlhf_marl.sweeps.processes import _Host, _OnCluster, cluster_of


def test_runs_are_trained_on_the_cluster_and_a_failure_leaves_the_others_alone(cluster, tiny_content, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors").touch()
    whole = tiny_content["model"]["name"]
    content = tiny_content | {"iterations": 1, "turns": 1}
    found = rlhf_marl.sweep(content, {"model.name": [whole, str(broken)]}, out=tmp_path / "sweep", runtime="ray")
    assert found["finished"].tolist() == [True, True, False, False]
    arms = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["arms"]
    assert "model.name" in arms[1]["runs"][0]["reason"]


def test_a_host_without_the_folder_is_named(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = _OnCluster(["runs"], tmp_path / "elsewhere" / "0.log", RuntimeConfig())
    process.wait()
    (tmp_path / "elsewhere").mkdir()
    assert process.poll() == 1
    log = (tmp_path / "elsewhere" / "0.log").read_text()
    assert log.startswith("error: ")
    assert f"has no folder {tmp_path}/elsewhere: a sweep over a cluster needs a file system that all hosts share" in log


def test_a_training_on_the_cluster_saves_when_it_is_stopped(cluster, tiny_content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, log = tmp_path / "run", tmp_path / "0.log"
    dump_config(
        check_config(tiny_content | {"iterations": 10_000, "checkpoint_every": 10_000}, "tiny"),
        path.with_suffix(".yaml"),
    )
    process = _OnCluster(["train", "run.yaml", "--run-dir", "run"], log, RuntimeConfig())
    while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").stat().st_size:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    process.stop()
    process.wait()
    assert process.poll() == 130
    done = len(set(pd.read_json(path / "metrics.jsonl", lines=True)["iteration"]))
    assert [folder.name for folder in (path / "checkpoints").glob("iteration_*")] == [f"iteration_{done:05}"]


def test_a_training_that_waits_for_room_is_stopped_too(cluster, tmp_path, monkeypatch):
    """The others keep their CPUs until all are stopped."""
    monkeypatch.chdir(tmp_path)
    process = _OnCluster(["runs"], tmp_path / "0.log", RuntimeConfig(cpus_per_worker=1000))
    assert process.poll() is None
    process.stop()
    process.wait()
    assert process.poll() == 1


@pytest.mark.parametrize("early", [False, True])
def test_a_host_lets_its_training_save(tmp_path, monkeypatch, early):
    """`early`: told to stop before it has begun."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\ntrap 'echo saved; exit 130' INT\ntouch {tmp_path}/begun\nsleep 30 & wait\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(interpreter))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # restored afterwards
    host, codes = _Host(), []
    if early:
        host.stop()
    thread = threading.Thread(target=lambda: codes.append(host.run(["train"], tmp_path / "0.log", tmp_path, 1, 0)))
    thread.start()
    while not early and not (tmp_path / "begun").exists():
        time.sleep(0.01)
    host.stop()
    thread.join()
    assert codes == [130]
    assert (tmp_path / "begun").exists() is not early
    assert early or (tmp_path / "0.log").read_text() == "saved\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # without a GPU it computes on the CPU


def test_what_a_cluster_cannot_train_is_refused_in_one_line(tiny_content, tmp_path):
    with pytest.raises(UsageError, match=r"^runtime: 'Ray' given; local or ray is needed$"):
        rlhf_marl.sweep(tiny_content, {"seed": [0]}, out=tmp_path / "sweep", runtime="Ray")
    with pytest.raises(UsageError, match=r"^jobs: 0 given; a number of runs, 1 or more, is needed$"):
        rlhf_marl.sweep(tiny_content, {"seed": [0]}, out=tmp_path / "sweep", jobs=0)
    with pytest.raises(UsageError, match=r"^c: runtime\.gpus_per_worker: 1\.5 given; above 1 it must be whole"):
        check_config(tiny_content | {"runtime": {"gpus_per_worker": 1.5}}, "c")
    ray = RuntimeConfig(kind="ray")
    with pytest.raises(
        UsageError, match=r"^c\.yaml: runtime\.kind: ray puts a run's agents into processes of their own"
    ):
        cluster_of([ray], "c.yaml")
    with pytest.raises(UsageError, match=r"^c\.yaml: runtime: with --runtime ray all runs need the same values$"):
        cluster_of([RuntimeConfig(), RuntimeConfig(cpus_per_worker=2)], "c.yaml")
