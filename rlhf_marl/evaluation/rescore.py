"""A run's dialogues, scored with other reward models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rlhf_marl.config import Config
from rlhf_marl.dialogue.questions import Questions, load_questions
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.collect import conversations
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.rewards import score_all
from rlhf_marl.rewards.tools import opened
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.training.build import short_enough, speakers_with_tokenizers, tokenizer_of


def rescored(path: Path, references: Sequence[str]) -> list[dict[str, Any]]:
    """Score a run's dialogues with other reward models: a row per card, agent and iteration."""
    run, config = RunDirectory.open(path, "reward rescore")
    turns = read_jsonl(run.dialogues)
    if not turns:
        raise UsageError(f"reward rescore: {str(path)!r} has no finished dialogues yet")
    prompts, where = [turn["prompt"] for turn in turns], f"{path}/config.yaml"
    rows = []
    for reference in references:
        card, model = opened(reference, "reward rescore")
        data, asked = [], prompts
        if card.reads_rows or card.reads_dialogue:
            questions = _questions(turns, config, where)
            if card.reads_rows:
                data = [questions.rows[turn["question"]] for turn in turns]
            if card.reads_dialogue:
                before = [questions.conversations[turn["question"]][:-1] for turn in turns]
                said = conversations(turns, ("iteration", "dialogue"))
                asked = [[*first, *rest] for first, rest in zip(before, said, strict=True)]
        card.check_columns(list(dict.fromkeys(name for row in data for name in row)), f"{where}: prompts")
        for agent in range(len(config.agents)):
            responses = [turn["responses"][agent]["text"] for turn in turns]
            _, scaled = score_all(card, model, asked, responses, agent=agent, rows=data)
            means = pd.Series(scaled).groupby([turn["iteration"] for turn in turns], sort=False).mean()
            rows += [
                {"card": card.name, "agent": agent, "iteration": iteration, "reward_scaled": mean}
                for iteration, mean in means.items()
            ]
    return rows


def _questions(turns: Sequence[dict[str, Any]], config: Config, where: str) -> Questions:
    """The prompts that the run's dialogues started from.

    Raises:
        UsageError: the prompts are unreadable, or others than in training.
    """
    questions = load_questions(config.prompts, config.seed, where)
    if getattr(config.prompts, "on_bad_row", "refuse") == "skip":  # training left out those that are too long
        tokenizer = tokenizer_of(config.model, f"{where}: model.name")
        questions = short_enough(config, questions, tokenizer, speakers_with_tokenizers(config, where), where)
    texts = dict(enumerate(questions.texts))
    for turn in turns:
        if turn["turn"] == 0 and turn["prompt"] != texts.get(turn["question"]):
            raise UsageError(
                f"{where}: prompts: dialogue {turn['dialogue']} began with {turn['prompt'][:40]!r}, and prompt "
                f"{turn['question'] + 1} is another now; reward models that read columns or whole dialogues need the "
                "same prompts"
            )
    return questions
