"""Run directories written without training, with any model text: the files of a training and an evaluation."""

import json
from pathlib import Path
from typing import Any

import yaml

from rlhf_marl.evaluation.files import agents_fingerprint
from rlhf_marl.evaluation.schema import VERSION
from tests.evaluation.examples import SETTINGS

ROOT = Path(__file__).parent.parent.parent
HOSTILE = [
    "<script>window.hacked = 1</script></textarea><b>bold</b>",
    "</script><img src=x onerror='window.hacked = 2'>{{7*7}}",
    "\u202egnp.exe \x1b[31mred\x1b[0m <a href='javascript:window.hacked=3'>link</a>",
]
CARDS = ("vowels", "<img src=x onerror=window.hacked=4>", "kind")


def write_run(folder: Path, *, iterations: int = 6, evaluated: bool = True, texts: list[str] | None = None) -> Path:
    """Three agents, two dialogues of three turns an iteration; rewards rise by 0.1 a dialogue."""
    folder.mkdir(parents=True)
    content = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text("utf-8"))
    content |= {"iterations": iterations, "dialogues": 2, "turns": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(content), "utf-8")
    (folder / "environment.json").write_text(json.dumps({"packages": {"rlhf-marl": "0.1.0"}}), "utf-8")
    (folder / "reward_models.json").write_text(json.dumps([{"name": name} for name in CARDS]), "utf-8")
    (folder / "topology.json").write_text(
        json.dumps({"matrix": [[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]})
    )
    for i in range(3):
        (folder / "adapters" / f"agent_{i}").mkdir(parents=True)
        (folder / "adapters" / f"agent_{i}" / "adapter_model.safetensors").touch()
    _write_lines(
        folder / "metrics.jsonl", [_metrics(it, k, i) for it in range(iterations) for k in range(3) for i in range(3)]
    )
    _write_lines(
        folder / "dialogues.jsonl",
        [_turn(it, d, k, texts) for it in range(iterations) for k in range(3) for d in range(2)],
    )
    if evaluated:
        content = evaluation_numbers()
        content["settings"] |= agents_fingerprint(folder)
        (folder / "evaluation.json").write_text(json.dumps(content), "utf-8")
        rows = [_question(q, policy, texts) for policy in ("base", "trained") for q in range(4)]
        _write_lines(folder / "evaluation_dialogues.jsonl", rows)
    return folder


def _write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _metrics(iteration: int, turn: int, agent: int) -> dict[str, Any]:
    update = 3 * iteration + turn
    return {
        **{"update": update, "iteration": iteration, "turn": turn, "agent": agent, "reward_model": CARDS[agent]},
        **{"reward_scaled": 0.1 * update, "td_error": 1 / (1 + update), "actor_skipped": 0, "critic_skipped": 0},
        **{"critic_dead_units": 0.99 if agent == 1 else 0.5, "critic_value": 0.5, "critic_projected": 0.0},
        **{"entropy": 0.2 if agent == 2 else 2.0, "kl": 0.5 * update, "response_tokens": 16.0, "truncated": 0.1},
        **{"controller_fallbacks": 0, "disagreement_before": 0.1, "disagreement_after": 1e-5},
    }


def _turn(iteration: int, dialogue: int, turn: int, texts: list[str] | None) -> dict[str, Any]:
    said = texts or [f"answer {agent} of {iteration}.{dialogue}.{turn}" for agent in range(3)]
    reward = 0.1 * (2 * iteration + dialogue)
    return {
        **{
            "iteration": iteration,
            "dialogue": dialogue,
            "turn": turn,
            "prompt": f"prompt {iteration}.{dialogue}.{turn}",
        },
        "responses": [{"text": text, "truncated": False, "tokens": [1]} for text in said],
        "reward_scaled": [reward, reward - 1, reward + 1],
        **{"aggregate": said[0], "next_prompt": "next", "controller_fallback": False},
    }


def _question(number: int, policy: str, texts: list[str] | None) -> dict[str, Any]:
    said = texts or [f"{policy} answer {agent}" for agent in range(3)]
    return {
        **{"policy": policy, "question": f"harmful-{number}", "kind": "harmful", "dialogue": number, "turn": 0},
        **{"prompt": f"question {number}", "responses": said, "truncated": [False] * 3, "aggregate": said[0]},
        **{"tokens": [9] * 3, "refused": [False] * 3, "aggregate_tokens": 9, "aggregate_refused": False},
        "scores": {name: [0.5 * number, -1.0, 1.0] for name in (*CARDS, "held")},
        "aggregate_scores": dict.fromkeys((*CARDS, "held"), 0.25),
        **{"next_prompt": None, "fallbacks": 0},
    }


def _metric(base: float, trained: float, width: float = 0.1) -> dict[str, Any]:
    d = trained - base
    return {"base": base, "trained": trained, "difference": d, "low": d - width, "high": d + width, "n": 4}


def evaluation_numbers() -> dict[str, Any]:
    rates = {key: _metric(0.1, 0.1) for key in ("refusal_harmful", "refusal_harmless", "distinct_1", "distinct_2")}
    common = {
        **{"own_reward": _metric(0.25, 1.5), "held_out_reward": _metric(0.5, -0.5), "length": _metric(16, 16, 0)},
        "win_rate": {"rate": 0.75, "low": 0.5, "high": 0.9, "n": 4, "position_consistent": None, "judge": "held"},
        **rates,
        "self_repetition": _metric(0.0, 0.25),
        "verdict": "better on its own reward, worse on held-out judges: likely hacked",
    }
    agent = {
        **common,
        "kl_to_base": {"mean": 0.3, "low": 0.2, "high": 0.4},
        "entropy": _metric(2, 1),
        "truncated": _metric(0.5, 0.5),
    }
    grid = [[0.5, -0.5, 0.0, 1.0]] * 4
    return {
        "version": VERSION,
        "settings": SETTINGS | {"judges": dict.fromkeys((*CARDS, "held"), "digest")},
        "agents": [{"agent": i, "reward_model": CARDS[i], **agent} for i in range(3)],
        "team": common | {"against_single": {"own_reward": _metric(0.25, 0.75), "held_out_reward": None}},
        "held_out_judges": ["held"],
        "cross_rewards": {
            "judges": [
                {"name": name, "trained_agents": [i] if i < 3 else []} for i, name in enumerate((*CARDS, "held"))
            ],
            "rows": ["agent 0", "agent 1", "agent 2", "team"],
            **dict.fromkeys(("base", "trained", "difference", "low", "high"), grid),
        },
        "agreement": _metric(0.1, 0.2),
        "controller_fallbacks": _metric(0.0, 0.25),
        "by_kind": {},
        "warnings": ["<i>few</i> questions"],
    }
