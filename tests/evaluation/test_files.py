"""Reading evaluation.json back, and whether it belongs to the run's current agents."""

import hashlib
import json

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import agents_fingerprint, is_current, read_evaluation, read_numbers
from tests.reporting.runs import write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def test_an_evaluation_is_read_with_its_rows(run_dir):
    found = read_evaluation(run_dir)
    assert found.reused
    assert found.numbers["agents"][0]["own_reward"]["trained"] == 1.5
    assert len(found.rows) == 8
    (run_dir / "evaluation_dialogues.jsonl").write_text("{")
    assert read_evaluation(run_dir) is None


def test_another_version_and_damage_are_one_line(run_dir):
    file = run_dir / "evaluation.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"version": 1}))
    with pytest.raises(UsageError, match=r"evaluation.json: has version 1; this rlhf-marl reads version 3$"):
        read_numbers(file)
    file.write_text("{")
    with pytest.raises(UsageError, match=r"evaluation.json: not JSON: "):
        read_numbers(file)
    file.write_text(json.dumps(content | {"team": {}}))
    with pytest.raises(UsageError, match=r"evaluation.json: team.verdict: missing; it is required$"):
        read_numbers(file)
    with pytest.raises(FileNotFoundError):
        read_numbers(run_dir / "no.json")


def test_the_fingerprint_is_of_names_and_contents(tmp_path):
    assert agents_fingerprint(tmp_path) == {"adapters_sha256": None, "checkpoint_sha256": None}
    file = tmp_path / "adapters" / "agent_0" / "adapter_model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    inner = hashlib.sha256(b"abc").digest()
    by_hand = hashlib.sha256(b"adapters/agent_0/adapter_model.safetensors" + inner).hexdigest()
    settings = agents_fingerprint(tmp_path)
    assert settings == {"adapters_sha256": by_hand, "checkpoint_sha256": None}
    assert is_current(settings, tmp_path)
    file.write_bytes(b"abd")
    assert not is_current(settings, tmp_path)
