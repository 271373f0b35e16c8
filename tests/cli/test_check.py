"""`rlhf-marl check` and `train --dry-run`: one screen, JSON, and mistakes in one line."""

import json

import pytest
import yaml

from rlhf_marl.cli.check import count_of, duration, size_of


@pytest.fixture
def config_file(tiny_content, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_content))
    return path


@pytest.mark.parametrize("command", [("check", "tiny.yaml"), ("train", "tiny.yaml", "--dry-run")])
def test_one_screen_and_nothing_is_written(run, config_file, tmp_path, command):
    before = set(tmp_path.rglob("*"))
    code, printed, errors = run(*command, "--iterations", "3")
    assert code == 0, errors
    assert len(printed.splitlines()) < 24
    assert printed.startswith("config      tiny.yaml: everything is found\n")
    assert "agent 0: vowels; agent 1: length" in printed
    assert "updates     6: 3 iterations of 2 dialogues with 2 turns" in printed
    assert "agents generate at most 24 tokens and read 256; the controller generates at most 20" in printed
    assert set(tmp_path.rglob("*")) == before


def test_json_has_the_numbers(run, config_file):
    code, printed, _ = run("check", "tiny.yaml", "--json", "--device", "cuda", "--model.dtype", "auto")
    numbers = json.loads(printed)
    assert code == 0
    assert (numbers["device"], numbers["dtype"], numbers["seconds_per_update"]) == ("cuda", "bfloat16", None)
    assert numbers["peak"] == sum(numbers["memory"].values())


def test_one_of_anything_is_singular(run, config_file):
    one = ("--iterations", "1", "--dialogues", "1", "--turns", "1", "--topology.gossip_rounds", "1")
    _, printed, _ = run("check", "tiny.yaml", *one)
    assert "updates     1: 1 iteration of 1 dialogue with 1 turn\n" in printed
    assert ", 1 gossip round\n" in printed


def test_a_mistake_is_one_line(run, config_file):
    code, _, errors = run("check", "tiny.yaml", "--agents.0.reward_model", "no.yaml")
    assert code == 2
    assert errors.startswith("error: tiny.yaml: agents.0.reward_model: 'no.yaml' does not exist")
    assert errors.count("\n") == 1


def test_workers_need_memory_of_their_own(run, config_file):
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    code, printed, errors = run("check", "tiny.yaml", "--runtime.kind", "ray", "--device", "cuda")
    assert code == 0, errors
    assert "workers     2 on Ray; the memory is that of one process, and each beyond the first needs about" in printed
    code, _, errors = run("check", "tiny.yaml", "--runtime.kind", "ray", "--probe")
    assert (code, errors.startswith("error: check: --probe measures agents in one process")) == (2, True)


def test_numbers_for_people():
    assert [size_of(345_600_000), size_of(1_234_000_000)] == ["346 MB", "1.2 GB"]
    assert [count_of(196_608), count_of(134_515_008)] == ["196.6 k", "134.5 M"]
    assert [duration(40), duration(720), duration(12_600)] == ["40 s", "12 min", "3.5 h"]


def test_a_validations_mistakes_are_found(run, config_file, tiny_content, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": "a", "kind": "ordinary", "prompt": "What is tea?"}\n')
    judged = {"questions": str(questions), "judges": [tiny_content["agents"][1]["reward_model"]]}
    config_file.write_text(yaml.safe_dump(tiny_content | {"validation": judged}))
    code, _, errors = run("check", "tiny.yaml")
    assert (code, errors) == (
        2,
        "error: tiny.yaml: validation.judges.0: 'length' trains agent 1; a judge must train nobody\n",
    )
