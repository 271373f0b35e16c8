"""Run directories: damage, full disks, a second process, and files of other runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

import rlhf_marl
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.runs import checkpoints
from rlhf_marl.runs.directory import RunDirectory
from tests.conftest import write_card
from tests.servers import scores_of_lengths, serving


@pytest.fixture
def run(tiny_config, tmp_path) -> RunDirectory:
    """A run with checkpoints of iterations 1 and 2."""
    run = RunDirectory.create(tmp_path / "run", tiny_config, [])
    for iteration in (1, 2):
        run.save_checkpoint(iteration, {"w": torch.full((100,), float(iteration))}, {"updates": 10 * iteration})
    return run


def newest(run: RunDirectory) -> Path:
    return run.path / "checkpoints" / "iteration_00002"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def test_what_a_run_left_that_died_at_its_beginning_is_no_run(tmp_path, tiny_config):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "environment.json").touch()
    RunDirectory.create(tmp_path / "run", tiny_config, [])
    with pytest.raises(UsageError, match="already exists"):
        RunDirectory.check_free(tmp_path / "run")


def test_a_changed_reward_card_is_refused_with_the_difference(tiny_content, tmp_path):
    rlhf_marl.train(tiny_content | {"iterations": 1}, run_dir=tmp_path / "run")
    card = Path(tiny_content["agents"][1]["reward_model"])
    card.write_text(card.read_text().replace("scale: 1.0", "scale: 2.0"))
    with pytest.raises(UsageError, match=r"was started with reward model 1.scale = 1.0, now it is 2.0; use a new run"):
        rlhf_marl.train(tiny_content, run_dir=tmp_path / "run", resume=True)


@pytest.fixture
def ensemble_content(tiny_content, tmp_path) -> tuple[dict, Path, Path]:
    """A config whose second agent's reward model is an ensemble of a function and a server; the members' files."""
    served = tmp_path / "served.yaml"
    served.write_text(yaml.safe_dump({"name": "served", "kind": "http", "url": "http://127.0.0.1:1", "max_retries": 0}))
    vowels = write_card(tmp_path, "member", "tests.conftest:count_vowels")
    both = tmp_path / "both.yaml"
    both.write_text(f"name: both\nkind: ensemble\nmembers: [{{card: {vowels.name}}}, {{card: {served.name}}}]\n")
    agents = [tiny_content["agents"][0], tiny_content["agents"][1] | {"reward_model": str(both)}]
    return tiny_content | {"agents": agents, "iterations": 1}, vowels, served


def test_a_changed_member_of_an_ensemble_is_refused_and_a_served_one_may_move(ensemble_content, tmp_path):
    content, vowels, served = ensemble_content
    with serving(scores_of_lengths) as server:
        served.write_text(served.read_text().replace("http://127.0.0.1:1", server.url))
        rlhf_marl.train(content, run_dir=tmp_path / "run")
    with serving(scores_of_lengths) as moved:
        served.write_text(served.read_text().replace(server.url, moved.url))
        rlhf_marl.train(content | {"iterations": 2}, run_dir=tmp_path / "run", resume=True)
    vowels.write_text(vowels.read_text().replace("offset: 0.0", "offset: 1.0"))
    with pytest.raises(UsageError, match=r"reward model 1.members.0.card.offset = 0.0, now it is 1.0; use a new run"):
        rlhf_marl.train(content | {"iterations": 4}, run_dir=tmp_path / "run", resume=True)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(run, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunStopped, match=r"metrics.jsonl cannot be written: No space left on device; free some space"):
        run.save_checkpoint(3, {"w": torch.zeros(100)}, {"updates": 30})
    monkeypatch.undo()
    assert run.load_checkpoint()[1]["iteration"] == 2
    assert not list(newest(run).parent.glob("*.tmp"))
    with pytest.raises(RunStopped, match=r"/dev/full cannot be written: No space left on device"):
        run.append(Path("/dev/full"), [{}])


def test_a_run_resumed_past_a_damaged_checkpoint_equals_the_uninterrupted_one(tiny_content, tmp_path, caplog):
    content = tiny_content | {"iterations": 3}
    whole = rlhf_marl.train(content, run_dir=tmp_path / "whole")
    rlhf_marl.train(content | {"iterations": 2}, run_dir=tmp_path / "run")
    flip(newest(RunDirectory(tmp_path / "run")) / "state.safetensors")
    resumed = rlhf_marl.train(content, run_dir=tmp_path / "run", resume=True)
    assert "is damaged" in caplog.text
    for name in ("critics.safetensors", "adapters/agent_0/adapter_model.safetensors", "dialogues.jsonl"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert len(read_jsonl(resumed.path / "metrics.jsonl")) == len(read_jsonl(whole.path / "metrics.jsonl"))
    assert files(resumed.path / "checkpoints") == files(whole.path / "checkpoints")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in ("state.json", "manifest.json")  # which record the config's iterations
    }


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tiny_content, tmp_path):
    for name, seed in (("run", 0), ("other", 1)):
        rlhf_marl.train(tiny_content | {"seed": seed}, run_dir=tmp_path / name)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match="its checkpoint of iteration 2 was written with seed = 1, now it is 0"):
        rlhf_marl.train(tiny_content | {"iterations": 3}, run_dir=tmp_path / "run", resume=True)


def test_changed_software_gives_a_warning(run, tiny_config, caplog):
    RunDirectory.resume(run.path, tiny_config)
    assert not caplog.text
    file = run.path / "environment.json"
    file.write_text(file.read_text().replace('"torch": "', '"torch": "1.'))
    RunDirectory.resume(run.path, tiny_config)
    assert "the run began with packages.torch 1." in caplog.text


def test_a_damaged_line_is_named(run):
    run.metrics.write_text('{"iteration": 0}\n{"iter\x00\n{"iteration": 1}\n')
    with pytest.raises(UsageError, match=r"metrics.jsonl: line 2 is damaged"):
        run.forget_from(2)


def first_line(edit):
    """Edits the first line of a JSON Lines file."""

    def change(file: Path) -> None:
        first, *rest = file.read_text().splitlines(keepends=True)
        file.write_text("".join([edit(first), *rest]))

    return change


def without(key: str):
    def edit(line: str) -> str:
        row = json.loads(line)
        del row[key]
        return json.dumps(row) + "\n"

    return first_line(edit)


def foreign(file: Path) -> None:
    """An intact checkpoint of something else."""
    rewrite(file, {"version": checkpoints.VERSION, "iteration": 2})


def odd_counters(file: Path) -> None:
    rewrite(file, json.loads(file.read_text()) | {"updates": 3})


def rewrite(file: Path, content: dict) -> None:
    """With a manifest that agrees."""
    file.write_text(json.dumps(content))
    manifest = json.loads((file.parent / "manifest.json").read_text())
    (file.parent / "manifest.json").write_text(json.dumps(manifest | {"state.json": checkpoints._fingerprint(file)}))


DEEP = "[" * 100_000
REFUSED = {
    "no cards": ("reward_models.json", lambda file: file.write_text("{"), "reward_models.json: cannot be read: Exp"),
    "deep cards": ("reward_models.json", lambda file: file.write_text(DEEP), "reward_models.json: cannot be read"),
    "other cards": ("reward_models.json", lambda file: file.write_text("[1]"), "reward_models.json: 0: 1 given"),
    "no row": ("metrics.jsonl", first_line(lambda line: f"[{line[:-1]}]\n"), "metrics.jsonl: line 1 is damaged"),
    "deep row": ("dialogues.jsonl", first_line(lambda line: DEEP + "\n"), "dialogues.jsonl: line 1 is damaged"),
    "no iteration": ("metrics.jsonl", without("iteration"), "metrics.jsonl: line 1 is damaged: it has no iteration"),
    "no name": (
        "metrics.jsonl",
        without("reward_model"),
        "metrics.jsonl: row 1 is damaged, duplicated or from another",
    ),
    "no reward": (
        "metrics.jsonl",
        without("reward_scaled"),
        "metrics.jsonl: row 1 is damaged, duplicated or from another",
    ),
    "twice": (
        "dialogues.jsonl",
        first_line(lambda line: 2 * line),
        "dialogues.jsonl: row 2 is damaged, duplicated or from",
    ),
    "odd counters": (
        "checkpoints/iteration_00002/state.json",
        odd_counters,
        "is invalid: its counters are inconsistent",
    ),
    "no run's": (
        "checkpoints/iteration_00002/state.json",
        foreign,
        "the newest checkpoint of .* is invalid: 'config'",
    ),
}
WARNED = {
    "cards gone": ("reward_models.json", Path.unlink, "reward_models.json is missing: the reward models may differ"),
    "environment": ("environment.json", lambda file: file.write_text(DEEP), "environment.json cannot be read"),
    "deep state": (
        "checkpoints/iteration_00002/state.json", lambda file: file.write_text(DEEP), "iteration_00002 is damaged",
    ),
    "emptied": ("metrics.jsonl", lambda file: file.write_text(""), "metrics.jsonl: 4 of the 4 lines of finished iter"),
    "gone": ("metrics.jsonl", Path.unlink, "metrics.jsonl: 4 of the 4 lines of finished iterations are missing"),
    "line gone": ("dialogues.jsonl", first_line(lambda line: ""), "dialogues.jsonl: 1 of the 4 lines of finished"),
    "no checkpoint": ("checkpoints", shutil.rmtree, "has no checkpoint yet: training starts from the beginning"),
    "copies": ("checkpoints/iteration_00002", lambda file: shutil.copytree(file, f"{file}.bak"), ""),
}  # fmt: skip


def everything(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize(("file", "damage", "line"), REFUSED.values(), ids=REFUSED)
def test_unrecoverable_damage_is_one_error_line(quick_content, tmp_path, file, damage, line):
    rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    damage(tmp_path / "run" / file)
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=f"^--resume: .*{line}|^.*{line}") as caught:
        rlhf_marl.train(quick_content | {"iterations": 3}, run_dir=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(("file", "damage", "words"), WARNED.values(), ids=WARNED)
def test_recoverable_damage_gives_a_warning(quick_content, tmp_path, caplog, file, damage, words):
    rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    damage(tmp_path / "run" / file)
    (tmp_path / "run" / "answers").mkdir()
    (tmp_path / "run" / "answers" / "iteration_1 (copy).jsonl").touch()
    run = rlhf_marl.train(quick_content | {"iterations": 3}, run_dir=tmp_path / "run", resume=True)
    assert words in caplog.text
    assert caplog.text or not words
    assert {row["iteration"] for row in read_jsonl(run.path / "dialogues.jsonl")} == {0, 1, 2}
    assert json.loads((run.path / "reward_models.json").read_text())[0]["name"] == "vowels"


def test_a_temporarily_unreadable_checkpoint_is_kept(run, monkeypatch):
    """A disk error is not damage: going back would remove a checkpoint that may be intact."""

    def broken(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "_read", broken)
    with pytest.raises(
        UsageError, match=r"iteration_00002 cannot be read at the moment: Input/output error; nothing was changed"
    ):
        run.load_checkpoint()
    assert newest(run).is_dir()


def test_a_refused_resume_changes_nothing(quick_content, tmp_path, monkeypatch):
    """Another process takes the lock while this one loads."""
    path = tmp_path / "run"
    rlhf_marl.train(quick_content, run_dir=path)
    before = (path / "config.yaml").read_bytes()
    other = FileLock(path / ".lock")
    check_cards = RunDirectory.check_cards
    monkeypatch.setattr(RunDirectory, "check_cards", lambda *given: (check_cards(*given), other.acquire()))
    with pytest.raises(UsageError, match="is being written by another process"):
        rlhf_marl.train(quick_content | {"iterations": 3}, run_dir=path, resume=True)
    other.release()
    assert (path / "config.yaml").read_bytes() == before


def test_a_run_that_finds_the_disk_full_at_its_start_can_start_again(tiny_config, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_marl.runs.directory.write_text", full)
    with pytest.raises(
        RunStopped, match=r"run cannot be written: No space left on device; free some space and start again"
    ):
        RunDirectory.create(tmp_path / "run", tiny_config, [])
    monkeypatch.undo()
    RunDirectory.create(tmp_path / "run", tiny_config, [])


def test_skipped_updates_are_counted_across_a_resume(tiny_content, tmp_path):
    """Two updates per iteration, none finite: the run stops at the same update however often it was interrupted."""
    card = write_card(tmp_path, "huge", "tests.training.test_loop:huge")
    content = tiny_content | {"agents": [{"reward_model": str(card)}] * 2, "stop_after_skipped": 5}
    rlhf_marl.train(content | {"iterations": 1}, run_dir=tmp_path / "run")
    rlhf_marl.train(content | {"iterations": 2}, run_dir=tmp_path / "run", resume=True)
    with pytest.raises(RunStopped, match="iteration 3: the last 6 updates had steps that were not finite"):
        rlhf_marl.train(content | {"iterations": 9}, run_dir=tmp_path / "run", resume=True)


def test_of_two_processes_that_begin_one_run_the_second_is_refused(run, tiny_config, tmp_path, monkeypatch):
    """The first has just written its config, after the second looked."""
    looks = iter([None])
    check_free = RunDirectory.check_free
    monkeypatch.setattr(RunDirectory, "check_free", lambda path: next(looks, path) and check_free(path))
    before = (run.path / "config.yaml").read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        RunDirectory.create(run.path, tiny_config.model_copy(update={"seed": 9}), [])
    assert (run.path / "config.yaml").read_bytes() == before


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(run, tiny_config):
    code = (
        "import sys; from pathlib import Path; from rlhf_marl.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked():\n    print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(UsageError, match="is being written by another process"):
        RunDirectory.resume(run.path, tiny_config)
    other.kill()
    other.communicate()
    RunDirectory.resume(run.path, tiny_config)
