"""Errors of the Python functions, inspecting a run without training one, and what several of them share."""

import json

import pytest

import rlhf_marl
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.rescore import rescored
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


def near(completions, target, **kwargs):
    return [float(goal - len(text)) for text, goal in zip(completions, target, strict=True)]


def test_columns_of_the_data_reach_reward_functions_wherever_answers_are_scored(quick_content, tmp_path):
    """In training, evaluation and rescoring; one line where they are missing."""

    def data(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    card = tmp_path / "near.yaml"
    card.write_text("{name: near, kind: callable, convention: trl, function: 'tests.test_api:near'}")
    targets = {"a?": 10, "b?": 200, "c?": 3000}
    prompts = data("p.jsonl", [{"q": q, "target": target} for q, target in targets.items()])
    content = quick_content | {
        "agents": [{"reward_model": str(card)}] * 2,
        "prompts": {"source": "jsonl", "path": prompts, "column": "q"},
        "iterations": 3,
    }
    run = rlhf_marl.train(content, run_dir=tmp_path / "run")
    assert sorted(set(run.dialogues["prompt"])) == sorted(targets)
    rewards = {}
    for row in run.dialogues.to_dict("records"):
        for answer, raw in zip(row["responses"], row["reward_raw"], strict=True):
            assert raw == targets[row["prompt"]] - len(answer["text"])
            rewards.setdefault(row["iteration"], []).append(raw)
    found = {(row["agent"], row["iteration"]): row["reward_scaled"] for row in rescored(tmp_path / "run", [str(card)])}
    assert {i: (found[0, i] + found[1, i]) / 2 for i in range(3)} == pytest.approx(
        {i: sum(values) / len(values) for i, values in rewards.items()}
    )

    question = {"id": "d", "kind": "ordinary", "prompt": "d?"}
    with pytest.raises(UsageError, match=r"columns: reward model near: .*:near needs a column 'target' of the data"):
        rlhf_marl.evaluate(tmp_path / "run", questions=data("e.jsonl", [question]), judges=[])
    with_columns = data("e.jsonl", [question | {"columns": {"target": 50_000}}])
    scores = rlhf_marl.evaluate(tmp_path / "run", questions=with_columns, judges=[])
    assert 49_000 < scores["cross_rewards"]["trained"][0][0] <= 50_000

    data("p.jsonl", [{"q": q, "target": 0} for q in reversed(targets)])
    with pytest.raises(UsageError, match=r"prompts: dialogue \d began with '.\?', and prompt \d is another now"):
        rescored(tmp_path / "run", [str(card)])
    data("p.jsonl", [{"q": "a?"}])
    with pytest.raises(UsageError, match=r"mine: prompts: reward model near: .*:near needs a column 'target'"):
        rlhf_marl.train(content, name="mine")
