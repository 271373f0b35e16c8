"""The choice between best and last adapters."""

import json

import pytest

from rlhf_marl.runs.handed_out import best_name, checkpoint_of, choice, in_words


@pytest.fixture
def validated(tiny_config):
    return tiny_config.model_copy(update={"best_metric": "held_out", "iterations": 40})


def record(path, content) -> None:
    (path / "checkpoints" / "iteration_00010").mkdir(parents=True)
    (path / "checkpoints" / "best.json").write_text(content)


def test_the_best_by_held_out_judges_is_the_default_and_nothing_else_is(validated, tiny_config, tmp_path):
    assert choice(tmp_path, validated, None) == "last"
    record(tmp_path, json.dumps({"folder": "iteration_00010", "score": 0.5}))
    assert choice(tmp_path, validated, None) == "best"
    assert choice(tmp_path, validated, "last") == "last"
    assert choice(tmp_path, tiny_config, None) == "last"
    assert choice(tmp_path, tiny_config, "best") == "best"
    assert checkpoint_of(tmp_path, "best") == tmp_path / "checkpoints" / "iteration_00010"
    assert in_words(tmp_path, validated, "best") == "the best adapters by held_out, after 10 of 40 iterations"


def test_a_finished_run_needs_no_checkpoints(validated, tmp_path):
    (tmp_path / "best").mkdir()
    assert choice(tmp_path, validated, None) == "best"
    assert checkpoint_of(tmp_path, "best") is None
    assert in_words(tmp_path, validated, "best") == "the best adapters by held_out"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}', '{"folder": "../../etc"}', "[" * 100_000])
def test_a_damaged_record_names_no_checkpoint(tmp_path, content):
    record(tmp_path, content)
    assert best_name(tmp_path) is None
    assert checkpoint_of(tmp_path, "best") is None
