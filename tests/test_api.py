"""Errors of the Python functions, and inspecting a run without training one."""

import pytest

import rlhf_marl
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.errors import UsageError
from tests.reporting.runs import write_run


def test_resuming_needs_a_run(tiny_config):
    with pytest.raises(UsageError, match=r"^--resume: needs --run-dir, the run to continue$"):
        rlhf_marl.train(tiny_config, resume=True)


def test_mistakes_in_plain_data_are_named_as_the_caller_says():
    with pytest.raises(UsageError, match=r"^mine: agents: missing; it is required$"):
        rlhf_marl.train({"iterations": 1, "model": {"name": "m"}}, name="mine")


def test_an_unknown_option_of_evaluate_lists_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"evaluate: nope: unknown key .*; choose questions, turns"):
        rlhf_marl.evaluate(tmp_path, nope=1)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="load_run"):
        rlhf_marl.load_run(tmp_path)


def test_a_run_as_tables(tmp_path):
    run = rlhf_marl.load_run(write_run(tmp_path / "run"))
    assert {"iteration", "agent", "reward_scaled"} <= set(run.metrics.columns)
    assert len(run.metrics["agent"].unique()) == len(run.config.agents)
    assert "responses" in run.dialogues.columns


def test_a_message_list_and_a_text_are_the_same_to_an_agent():
    asked = []

    def chat(conversations, max_tokens):
        asked.append((conversations, max_tokens))
        return [" said\n"]

    agent = rlhf_marl.api.Agent(0, chat, Speaker("a"))
    assert agent.chat("hi", 5) == agent.chat([{"role": "user", "content": "hi"}], 5) == "said"
    assert asked[0] == asked[1] == ([[{"role": "user", "content": "hi"}]], 5)
