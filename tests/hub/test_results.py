"""The model card's use of evaluation.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import rlhf_marl
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import agents_fingerprint
from rlhf_marl.evaluation.schema import VERSION
from rlhf_marl.hub.results import TrainingRewards, load_evaluation, training_rewards
from rlhf_marl.runs.directory import RunDirectory
from tests.evaluation.examples import SETTINGS


def metric(base: float, trained: float, low: float, high: float) -> dict[str, Any]:
    return {"base": base, "trained": trained, "difference": trained - base, "low": low, "high": high, "n": 40}


def evaluation(agents: int = 2, **changes: Any) -> dict[str, Any]:
    """An evaluation.json of the form that `rlhf-marl evaluate` writes."""
    speaker = {
        "verdict": "agent learned | <script>",
        "own_reward": metric(0.25, 1.0, 0.5, 1.125),
        "held_out_reward": metric(0.0, -0.25, -0.5, 0.125),
        "win_rate": {"rate": 0.75, "low": 0.5, "high": 0.875, "n": 24, "position_consistent": 0.9, "judge": "chat"},
        **{key: metric(0.5, 0.5, 0.0, 0.0) for key in ("length", "distinct_1", "distinct_2", "self_repetition")},
        **{"refusal_harmful": None, "refusal_harmless": None},
    }
    agent = speaker | {
        "reward_model": "vowels",
        "kl_to_base": {"mean": 3.5, "low": 3.0, "high": 4.0},
        "entropy": metric(2.0, 1.5, -0.75, -0.25),
        "truncated": metric(0.5, 0.5, 0.0, 0.0),
    }
    return {
        "version": VERSION,
        "settings": SETTINGS
        | {"questions": "/home/someone/held_out.jsonl", "n_questions": 20, "turns": 3, "confidence": 0.9},
        "agents": [{"agent": number, **agent} for number in range(agents)],
        "team": speaker | {"against_single": {"own_reward": metric(0.25, 1.0, 0.5, 1.125), "held_out_reward": None}},
        "held_out_judges": ["strict", "mild"],
        "cross_rewards": {
            "judges": [{"name": "vowels", "trained_agents": [0]}],
            "rows": ["agent 0", "agent 1", "team"],
            **dict.fromkeys(("base", "trained", "difference", "low", "high"), [[0.0]] * 3),
        },
        "agreement": None,
        "controller_fallbacks": metric(0.0, 0.0, 0.0, 0.0),
        "by_kind": {},
        "warnings": ["few questions", "/home/alice/secret/metrics.jsonl is damaged", "judge C:\\secret left out"],
    } | changes


def write(run: Path, content: dict[str, Any]) -> None:
    content["settings"] |= agents_fingerprint(run)
    (run / "evaluation.json").write_text(json.dumps(content))


def test_the_card_shows_intervals_and_the_header_has_them_too(trained, tmp_path):
    write(trained, evaluation())
    rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    text = card.text
    assert "| own reward (scaled) | 0.250 | 1.000 | +0.750 | 0.500 to 1.125 | 40 |" in text
    assert "| policy entropy, nats per token | 2.000 | 1.500 | -0.500 | -0.750 to -0.250 | 40 |" in text
    assert "refused" not in text  # not measured
    assert "0.750 (0.500 to 0.875, 24 questions, judged by chat)" in text
    assert "| mean of held-out judges (standard deviations) | 0.000 | -0.250 | -0.250 | -0.500 to 0.125 | 40 |" in text
    assert "trained none of the run's agents, here strict, mild; each counts in standard deviations" in text
    assert (
        "held\\_out.jsonl, 20 questions with 3 turns each.\nIntervals are for the paired difference, at 90% conf"
        in text
    )
    assert "- few questions\n" in text
    assert "secret" not in text  # warnings that name a file stay here
    assert "agent learned \\| \\<script\\>" in text
    assert "someone" not in text
    assert "not evaluated" not in text
    reward, held_out, wins = card.data.eval_results
    assert (reward.metric_type, reward.metric_value) == ("reward", 0.75)
    assert reward.metric_name == "reward by vowels (scaled), change from base"
    assert held_out.metric_name == (
        "mean of held-out judges (strict, mild) in standard deviations of their scores of base answers, "
        "change from base"
    )
    assert reward.metric_args == {"low": 0.5, "high": 1.125, "n": 40, "confidence": 0.9}
    assert (wins.metric_type, wins.metric_value) == ("win_rate", 0.75)
    assert wins.metric_name == "win rate against base, by chat"
    assert card.data.model_name == "Agent 0 (vowels)"


def test_an_agent_that_was_not_evaluated(trained, tmp_path):
    write(trained, evaluation(agents=1))
    rlhf_marl.export(trained, agent=1, to=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "was not evaluated" in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize("change", ["adapter", "checkpoint"])
def test_an_evaluation_of_other_agents_is_not_shared(trained, tmp_path, change):
    write(trained, evaluation())
    if change == "adapter":
        shutil.rmtree(trained / "checkpoints")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copy(trained / "adapters" / "agent_0" / name, trained / "adapters" / "agent_1" / name)
    else:  # trained on, with no effect on the numbers of this agent
        run = RunDirectory(trained)
        tensors, values = run.load_checkpoint()
        run.save_checkpoint(values.pop("iteration") + 1, tensors, values)
    with pytest.raises(UsageError, match=r"evaluation.json: belongs to other adapters .*; evaluate the run ag"):
        rlhf_marl.export(trained, agent=1, to=tmp_path / "out")
    (trained / "evaluation.json").unlink()
    rlhf_marl.export(trained, agent=1, to=tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"version": 3,', "evaluation.json: not JSON: "),
        ("[" * 3000, "evaluation.json: not JSON: "),
        (json.dumps(evaluation(version=1)), "evaluation.json: has version 1; this rlhf-marl reads version 3"),
        (json.dumps(evaluation(settings=[])), "evaluation.json: settings: "),
        (json.dumps(evaluation()).replace("1.125", "NaN"), "evaluation.json: agents.0.own_reward.high: "),
        (
            json.dumps(evaluation()).replace("[[0.0], [0.0], [0.0]]", "[[0.0]]", 1),
            "evaluation.json: cross_rewards: base",
        ),
        (json.dumps([1]), "evaluation.json: "),
    ],
)
def test_a_damaged_evaluation_is_one_line(tmp_path, content, line):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        load_evaluation(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{line}")
    assert said.endswith("evaluate the run again, or move the file away to share without it")
    assert "\n" not in said


def test_no_evaluation_is_none(tmp_path):
    assert load_evaluation(tmp_path) is None


def test_training_rewards_are_those_of_the_first_and_last_fifth():
    """Ten updates of each of two agents: two are a fifth."""
    rows = [
        {
            "agent": agent,
            "iteration": update // 2,
            "reward_scaled": float(update) if agent else 99.0,
            "kl": 8.0 * update,
            "response_tokens": 4.0,
            "entropy": 3.0 - 0.1 * update,
            "truncated": 0.5,
        }
        for update in range(10)
        for agent in (0, 1)
    ]
    found = training_rewards(rows, 1)
    assert found == TrainingRewards(
        updates=10, reward=(0.5, 8.5), kl_per_token=17.0, entropy=pytest.approx(2.15), truncated=0.5
    )
    assert training_rewards([row for row in rows if row["agent"] == 0], 1) is None
    assert training_rewards([{k: v for k, v in row.items() if k != "kl"} for row in rows], 1) is None
