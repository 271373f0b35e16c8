"""A run's dialogues, scored with other reward models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.collect import conversations
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.rewards import score_all
from rlhf_marl.rewards.tools import opened
from rlhf_marl.runs.directory import RunDirectory


def rescored(path: Path, references: Sequence[str]) -> list[dict[str, Any]]:
    """Score a run's dialogues with other reward models: a row per card, agent and iteration."""
    run, config = RunDirectory.open(path, "reward rescore")
    turns = read_jsonl(run.dialogues)
    if not turns:
        raise UsageError(f"reward rescore: {str(path)!r} has no finished dialogues yet")
    prompts = [turn["prompt"] for turn in turns]
    rows = []
    for reference in references:
        card, model = opened(reference, "reward rescore")
        for agent in range(len(config.agents)):
            responses = [turn["responses"][agent]["text"] for turn in turns]
            asked = conversations(turns, ("iteration", "dialogue")) if card.reads_dialogue else prompts
            _, scaled = score_all(card, model, asked, responses, agent=agent)
            means = pd.Series(scaled).groupby([turn["iteration"] for turn in turns], sort=False).mean()
            rows += [
                {"card": card.name, "agent": agent, "iteration": iteration, "reward_scaled": mean}
                for iteration, mean in means.items()
            ]
    return rows
