"""Processes of a sweep: what is trained, resumed, left alone and reported. Training is tests/sweeps/stub.py."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf_marl.config import dump_config
from rlhf_marl.sweeps.execute import execute
from rlhf_marl.sweeps.processes import on_this_machine


def run(runs, **options):
    said = []
    options = {"jobs": 2, "evaluate": False} | options
    options = {"start": on_this_machine(options["jobs"])} | options
    failures = execute(runs, **options, report=lambda r, what: said.append((r.seed, what)))
    return failures, said


def test_every_run_is_trained_once_and_finished_ones_are_left_alone(stub, planned):
    failures, said = run(planned({"seed": [0, 1]}), jobs=1)
    assert failures == {}
    assert said == [(0, "training"), (0, "finished"), (1, "training"), (1, "finished")]
    assert len(stub()) == 2
    _, said = run(planned({"seed": [0, 1, 2]}))
    assert sorted(said) == [(0, "finished"), (1, "finished"), (2, "finished"), (2, "training")]
    assert len(stub()) == 3
    assert "--resume" not in " ".join(stub())


def test_a_longer_run_resumes(stub, planned):
    run(planned({"seed": [0]}))
    run(planned({"seed": [0]}, iterations=4))
    assert stub()[1].endswith("default/0 --resume")


def test_evaluation_follows_training(stub, planned):
    _, said = run(planned({"seed": [0]}), evaluate=True)
    assert said == [(0, "training"), (0, "evaluating"), (0, "finished")]
    assert [call.split()[0] for call in stub()] == ["train", "evaluate"]


def test_a_failure_leaves_the_others_alone_and_is_tried_again(stub, planned):
    over = {"actor.step_size": [0.5, 0.001], "seed": [0]}
    failures, said = run(planned(over))
    assert failures == {"actor.step_size=0.5, seed 0": "the service is down"}
    assert (0, "finished") in said
    run(planned(over))
    assert len(stub()) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_cores_are_shared(stub, planned, monkeypatch, jobs):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    runs = planned({"seed": [0]})
    run(runs, jobs=jobs)
    assert runs[0].path.with_name("0.log").read_text() == ("threads None\n" if jobs == 1 else "threads 4\n")


def test_ctrl_c_lets_trainings_save_and_the_same_sweep_resumes(stub, planned):
    runs = planned({"actor.step_size": [0.25], "seed": [0, 1, 2]})

    def interrupt():
        while not all((run.path / "waiting").exists() for run in runs[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(runs)
    thread.join()
    assert len(stub()) == 2  # the third was not started
    failures, _ = run(runs, jobs=1)
    assert failures == {}
    assert [call.endswith("--resume") for call in stub()[2:]] == [True, True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_sweep_lets_its_training_save(stub, planned, tmp_path):
    (planned_run,) = planned({"actor.step_size": [0.25], "seed": [0]})
    folder = planned_run.path
    folder.parent.mkdir(parents=True)
    dump_config(planned_run.config, tmp_path / "0.yaml")
    code = (
        "import sys, time; from pathlib import Path; from rlhf_marl.sweeps.processes import on_this_machine; "
        f"sys.executable = {sys.executable!r}; arguments = ['train', '0.yaml', '--run-dir', {str(folder)!r}]; "
        "on_this_machine(1)(arguments, Path('log')); time.sleep(60)"
    )
    with subprocess.Popen([sys.orig_argv[0], "-c", code]) as sweep:
        for file in (folder / "waiting", folder / "saved"):
            for _ in range(6000):
                if file.exists():
                    break
                time.sleep(0.01)
            sweep.kill()
    assert (folder / "saved").exists()
