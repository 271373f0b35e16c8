"""Validation during training: the team and its agents on held-out questions, scored by judges that train nobody."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from rlhf_marl.config import Config
from rlhf_marl.dialogue.player import Player
from rlhf_marl.dialogue.questions import load_questions as load_training_questions
from rlhf_marl.dialogue.speakers import decodings
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.collect import played, score
from rlhf_marl.evaluation.judges import Scorer, check_held_out, check_recipe
from rlhf_marl.evaluation.questions import Question, columns_of, load_questions, spread, without_trained
from rlhf_marl.files.locate import find_data
from rlhf_marl.rewards import Card, build_reward_model, load_card
from rlhf_marl.services.journal import Journal
from rlhf_marl.training.build import Experiment, recipes_of

# Numbers of the validation's dialogues, beyond those of any training. The random numbers of an answer depend on the
# dialogue's number, so every validation asks with the same ones, and their differences come from training alone.
FIRST_DIALOGUE = 2**40
_log = logging.getLogger("rlhf_marl")
Row = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """What a validation needs besides models.

    Attributes:
        judges: cards; those of kind `trained` are finished before they are built.
    """

    questions: Sequence[Question]
    turns: int
    judges: Sequence[Card]


def prepare_validation(config: Config, where: str) -> Prepared | None:
    """As `read_validation`, with finished cards; None if the config has no validation section.

    Raises:
        UsageError: as `read_validation`, also if a judge's trained model trains an agent.
    """
    if config.validation is None:
        return None
    own = [] if config.n_workers else recipes_of(config, where)  # workers read their own
    found = read_validation(config, where, own)
    judges = [check_held_out(card, own, f"{where}: validation.judges.{i}") for i, card in enumerate(found.judges)]
    return replace(found, judges=judges)


def read_validation(config: Config, where: str, own: Sequence[Card]) -> Prepared:
    """Read the questions and the judges' cards of a config with a validation section.

    own: the agents' cards, as they are written.

    Raises:
        UsageError: unusable questions or cards, or a judge that trains an agent.
    """
    asked = config.validation
    assert asked is not None
    path = find_data(asked.questions, f"{where}: validation.questions")
    trained = load_training_questions(config.prompts, config.seed, where).texts
    kept, left_out = without_trained(load_questions(path), trained)
    if left_out:
        _log.warning(
            "%s: validation.questions: %d of %d questions are also asked in training and are left out; the first: %s",
            *(where, len(left_out), len(kept) + len(left_out), left_out[0]),
        )
    if not kept:
        raise UsageError(f"{where}: validation.questions: training asks all questions of {path}; choose others")
    places = [f"{where}: validation.judges.{i}" for i in range(len(asked.judges))]
    cards = [load_card(reference, place) for reference, place in zip(asked.judges, places, strict=True)]
    for i, (card, place) in enumerate(zip(cards, places, strict=True)):
        if card.name in {other.name for other in cards[:i]}:
            raise UsageError(f"{place}: another judge is also named {card.name!r}; give one of them another name")
    for card, place in zip(cards, places, strict=True):
        check_recipe(card, own, place)
        card.check_columns(columns_of(kept), f"{where}: validation.questions: columns")
    return Prepared(spread(kept, asked.limit), asked.turns, cards)


@final
@dataclass(frozen=True, slots=True)
class Validation:
    """Callable that plays the held-out questions with the team as it is now, and returns the mean scores.

    Attributes:
        player: asks the team. Dialogues are read whole if the models' context length is known, as in an evaluation.
    """

    player: Player
    questions: Sequence[Question]
    turns: int
    judges: Sequence[Scorer]

    def __call__(self) -> Row:
        """The scores of one line of validation.jsonl; see rlhf_marl/runs/validations.py.

        Raises:
            RunStopped: a judge or the controller failed.
        """
        rows: list[Row] = [
            {
                "policy": "trained",
                "dialogue": dialogue,
                "question": question,
                "prompt": prompt,
                "responses": list(responses),
                "aggregate": merged.aggregate,
                "scores": {},
                "aggregate_scores": {},
            }
            for turn in played(self.player, self.questions, self.turns, first=FIRST_DIALOGUE)
            for dialogue, question, prompt, responses, merged in zip(
                *(turn.dialogues, turn.questions, turn.prompts, zip(*turn.texts, strict=True), turn.merged), strict=True
            )
        ]
        for judge in self.judges:
            score(rows, judge, dict(enumerate(question.columns for question in self.questions)))
        team = {judge.name: _mean(rows, [row["aggregate_scores"][judge.name] for row in rows]) for judge in self.judges}
        agents = {
            judge.name: [
                _mean(rows, [row["scores"][judge.name][agent] for row in rows])
                for agent in range(len(rows[0]["responses"]))
            ]
            for judge in self.judges
        }
        return {
            "questions": len(self.questions),
            "team": float(np.mean(list(team.values()))),
            "agents": np.mean(list(agents.values()), axis=0).tolist(),
            "judges": {name: {"team": team[name], "agents": agents[name]} for name in team},
        }


def build_validation(prepared: Prepared, experiment: Experiment, where: str, journal: Journal) -> Validation:
    """Build the judges, and the player that asks the experiment's team.

    journal: records the answers of judges that are services.

    Raises:
        UsageError: a judge that cannot be built, or that trains an agent.
    """
    judges = []
    for i, card in enumerate(prepared.judges):
        check_held_out(card, experiment.cards, f"{where}: validation.judges.{i}")  # those of workers are known only now
        judges.append(Scorer(card.name, card, build_reward_model(card, experiment.sampler, journal), []))
    player = experiment.player
    if experiment.context_length is not None:
        room = experiment.context_length - max(group.max_new_tokens for group in decodings(experiment.config))
        player = replace(player, max_prompt_tokens=room)
    return Validation(player, prepared.questions, prepared.turns, judges)


def _mean(rows: Sequence[Row], values: Sequence[float]) -> float:
    """Mean over questions of the mean over a question's turns."""
    of_question: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        of_question.setdefault(row["question"], []).append(value)
    return float(np.mean([np.mean(found) for found in of_question.values()]))
