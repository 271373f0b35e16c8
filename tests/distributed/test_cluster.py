"""What is checked before training, and that nothing is left afterwards."""

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import yaml

from rlhf_marl.config import check_config
from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.distributed import cluster as under_test
from rlhf_marl.distributed.build import build_distributed
from rlhf_marl.distributed.cluster import check_installed, connect
from rlhf_marl.errors import UsageError


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(under_test, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    with pytest.raises(UsageError, match=r"^c: Ray is not installed: pip install '\.\[dist.* in the toolkit's folder$"):
        check_installed("c")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:9", r"\[Errno 111\] Connection refused"),
        ("ray://here:9", "give"),
        ("here", "give host:port, or auto"),
    ],
)
def test_an_address_without_a_ray_is_one_line_at_once(monkeypatch, address, reason):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(UsageError, match=f"^c: runtime.address: no Ray at '{address}': .*{reason}"):
        connect(RuntimeConfig(kind="ray", address=address), 2, "c")


def test_auto_finds_a_ray_that_was_stopped_and_says_so_at_once(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match=r"^c: runtime.address: no Ray at '127.0.0.1:9': \[Errno 111\]"):
        connect(RuntimeConfig(kind="ray", address="auto"), 2, "c")


def test_auto_without_any_ray_says_what_to_do(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def nowhere():
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(under_test, "_found", nowhere)
    with pytest.raises(UsageError, match=r"^c: runtime.address: no Ray on this machine: start one with `ray start"):
        connect(RuntimeConfig(kind="ray", address="auto"), 2, "c")


def test_more_than_the_cluster_has_is_one_line(cluster):
    with pytest.raises(UsageError, match=r"^c: runtime.cpus_per_worker: 3 workers need 24 CPUs; .* cluster has 4$"):
        connect(RuntimeConfig(kind="ray", cpus_per_worker=8), 3, "c")
    with pytest.raises(UsageError, match=r"^c: runtime.gpus_per_worker: 3 workers need 1.5 GPUs; .* cluster has 0$"):
        connect(RuntimeConfig(kind="ray", gpus_per_worker=0.5), 3, "c")


def test_room_is_that_of_each_host():
    room = [under_test.room_of({"CPU": cpus}, RuntimeConfig(cpus_per_worker=2)) for cpus in (1.0, 3.0, 8.0)]
    assert room == [0, 1, 4]
    gpus = RuntimeConfig(gpus_per_worker=0.1)
    assert [under_test.room_of(host, gpus) for host in ({"CPU": 64.0}, {"CPU": 64.0, "GPU": 4.0})] == [0, 40]


def test_a_worker_that_fits_on_no_host_is_one_line(cluster, monkeypatch):
    """Two hosts of two CPUs have four, but a worker cannot be on both."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": alive, "Resources": {"CPU": 2.0}} for alive in (1, 1, 0)])
    wide = RuntimeConfig(kind="ray", cpus_per_worker=3)
    with pytest.raises(UsageError, match=r"^c: runtime: a worker needs 3 CPUs and 0 GPUs of one host; .* 0 of 1$"):
        connect(wide, 1, "c")


def test_rewards_in_one_place_are_refused(content):
    with pytest.raises(UsageError, match="cooperation: minimum needs everyone's rewards in one place; use runtime"):
        check_config(content | {"cooperation": "minimum", "actor": {"credit": "consensus"}}, "c")


def test_validations_that_lack_answers_or_cards_are_refused(content):
    content = content | {"validation": {"judges": ["harmless"]}}
    with pytest.raises(UsageError, match=r"c: validation: needs the answers of all agents; set runtime\.lost to"):
        check_config(content | {"runtime": {"kind": "ray", "lost": "continue"}}, "c")
    with pytest.raises(UsageError, match="c: validation: needs to know the agents' reward cards, since its"):
        check_config(content | {"runtime": {"kind": "ray", "private_rewards": True}}, "c")


def test_ray_listens_to_this_machine_alone(cluster):
    import ray

    assert ray.util.get_node_ip_address() == "127.0.0.1"


def test_what_a_worker_lacks_is_one_line_with_its_agents_before_models_load(content, cluster, tmp_path):
    (tmp_path / "card.yaml").write_text(
        "name: exact\nlicence: none\nkind: callable\nconvention: trl\n"
        "function: tests.distributed.test_cluster:matches_solution\n"
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hi?", "topic": "greetings"}\n')
    agents = [{"reward_model": str(tmp_path / name)} for name in ("gone.yaml", "card.yaml")]
    content = content | {"prompts": {"source": "jsonl", "path": str(tmp_path / "prompts.jsonl")}, "agents": agents}
    config = check_config(content | {"topology": {"graph": "ring"}}, "c")
    with pytest.raises(UsageError) as error:
        build_distributed(config, "c", "cpu")
    first, second = str(error.value).split("\n")
    assert first.startswith("agent 0: c: agents.0.reward_model: ")
    assert re.match(r"agent 1: c: prompts: .*needs a column 'solution'.*; its columns are topic$", second)


def matches_solution(completions, solution, **columns):
    return [float(answer == right) for answer, right in zip(completions, solution, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left(content, tmp_path, how):
    """Ctrl-C, which goes to all processes of the terminal, and a driver that is killed; meanwhile, a second job."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content | {"iterations": 100_000}))
    command = [sys.executable, "-m", "rlhf_marl", "train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["TEST_MARK"] = str(tmp_path)
    with (tmp_path / "errors").open("w") as errors:
        driver = subprocess.Popen(command, env=environment, start_new_session=True, stderr=errors)
    while not list((tmp_path / "run").glob("checkpoints/iteration_*")):
        assert driver.poll() is None, (tmp_path / "errors").read_text()
        time.sleep(0.1)
    second = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert second.returncode == 2
    assert "is being written by another process" in second.stderr
    assert len(marked(tmp_path)) > 4
    os.killpg(driver.pid, how) if how == signal.SIGINT else driver.kill()
    assert driver.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while left := marked(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def marked(mark):
    """Processes that inherited this environment, with their command."""
    found: dict[int, bytes] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as command:
                if f"TEST_MARK={mark}".encode() in environ.read():
                    found[int(pid)] = command.read()[:80]
        except OSError:  # it has ended
            continue
    return found
