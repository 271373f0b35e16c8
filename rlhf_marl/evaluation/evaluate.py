"""Evaluate one run directory: base model against trained agents and their team, on held-out questions.

run directory -> system -> collect -> score -> summarise -> evaluation.json and evaluation_dialogues.jsonl
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_marl.config import Config
from rlhf_marl.dialogue.build_controller import build_controller, prepare_controller
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation import statistics
from rlhf_marl.evaluation.collect import Row, Sampling, collect, compare_pairs, n_turns, score
from rlhf_marl.evaluation.files import (
    DIALOGUES,
    NUMBERS,
    Evaluation,
    agents_fingerprint,
    is_current,
    read_evaluation,
)
from rlhf_marl.evaluation.judges import (
    HELD_OUT_CARDS,
    card_digest,
    held_out_scorers,
    own_scorers,
    pairwise_judge,
)
from rlhf_marl.evaluation.questions import SHIPPED, Question, fingerprint, load_questions, spread, without_trained
from rlhf_marl.evaluation.schema import VERSION
from rlhf_marl.evaluation.summary import summarise
from rlhf_marl.evaluation.trained_run import (
    check_agents,
    check_state,
    load_agents,
    open_run,
    reward_cards,
    trained_questions,
)
from rlhf_marl.files.atomic import write_text
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.loading import ChatModel, default_device
from rlhf_marl.rewards import Card, load_card
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.training.build import build_agents, build_reward_models, fits_into_memory

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What to evaluate on.

    Attributes:
        questions: JSON Lines; see questions.py.
        turns: of questions without follow-ups.
        max_new_tokens: the longest answer; as in training if None.
        judges: held-out cards; the shipped ones if None.
        judge: card of a chat judge for win rates, in place of the held-out reward models.
        seed: seed of the sampled answers.
        limit: number of questions, spread evenly over the kinds; all if None.
    """

    questions: str = SHIPPED
    turns: int = 1
    max_new_tokens: int | None = None
    judges: tuple[str, ...] | None = None
    judge: str | None = None
    seed: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        """Take paths for texts and lists for tuples; raises UsageError for what cannot be meant."""
        object.__setattr__(self, "questions", _text(self.questions, "questions"))
        if self.judge is not None:
            object.__setattr__(self, "judge", _text(self.judge, "judge"))
        if self.judges is not None:
            if not isinstance(self.judges, list | tuple):
                raise UsageError(f"judges: {self.judges!r} given; a list of cards is needed")
            object.__setattr__(self, "judges", tuple(_text(judge, "judges") for judge in self.judges))
        for key, least in (("turns", 1), ("max_new_tokens", 1), ("seed", 0), ("limit", 1)):
            value = getattr(self, key)
            if value is None and key in ("max_new_tokens", "limit"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{key}: {value!r} given; a whole number, at least {least}, is needed")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str | os.PathLike) or isinstance(found := os.fspath(value), bytes):
        raise UsageError(f"{key}: {value!r} given; the path of a file is needed")
    return found


def evaluate_run(path: Path, options: Options, progress: Progress) -> Evaluation:
    """Evaluate one run and write the two files into it; an earlier evaluation with the same settings is reused.

    Args:
        progress: receives what is being done, how much of it is done, and how much there is.

    Raises:
        UsageError: no run, unusable questions or judges; OnlyRecorded: no agents.
        RunStopped: a reward model or the controller failed.
    """
    began = time.monotonic()
    run, config = check_run(path)
    notes: list[str] = []
    questions = _questions(options, trained_questions(config, run, notes), notes)
    cards = reward_cards(run, config, notes)
    settings = _settings(config, options, questions, cards)
    stored = read_evaluation(path)
    if stored is not None and _asks_the_same(stored.numbers["settings"], settings, path):
        return stored
    check_state(run, config, notes)
    where, device = f"{path}/config.yaml", default_device()
    if options.max_new_tokens is not None:
        generation = config.generation.model_copy(update={"max_new_tokens": options.max_new_tokens})
        config = config.model_copy(update={"generation": generation})
    with fits_into_memory(where):
        prepared = prepare_controller(config.controller, len(config.agents), where)
        cards = [card.finished() for card in cards]
        agents = build_agents(config, where, device, start=False)
        controller = build_controller(config.controller, prepared, agents.sampler, device, where, UNRECORDED)
        own = own_scorers(cards, build_reward_models(cards, agents.sampler, UNRECORDED))
    sampling = _sampling(config, options, questions, agents.chat_model)
    settings |= {"adapters": load_agents(agents.adapters, run, config, notes), **agents_fingerprint(path)}
    held_out, missing = held_out_scorers(own, options.judges, agents.sampler)
    pairwise = pairwise_judge(options.judge, agents.sampler) if options.judge is not None else None
    scorers = [*own, *held_out]

    counted = _counted(progress, "playing", _turns(questions, options))
    rows = collect(agents, controller, sampling, questions, options.turns, counted)
    _note_lengths(rows, config, sampling.max_prompt_tokens, notes)
    score(rows, scorers, _counted(progress, "scoring", len(scorers)))
    if pairwise is not None:
        progress("comparing pairs", 0, 1)
        compare_pairs(rows, pairwise)
    progress("intervals", 0, 1)
    numbers = {
        "version": VERSION,
        "settings": settings
        | {
            "judges": {scorer.name: card_digest(scorer.card) for scorer in scorers},
            "seconds": round(time.monotonic() - began, 1),
        },
        **summarise(
            rows,
            [next(scorer.name for scorer in own if agent in scorer.trained_agents) for agent in range(len(cards))],
            [{"name": scorer.name, "trained_agents": scorer.trained_agents} for scorer in scorers],
            pairwise.name if pairwise else None,
        ),
        "warnings": notes + missing,
    }
    _write(path, numbers, rows)
    return Evaluation(numbers, rows, reused=False)


def check_run(path: Path) -> tuple[RunDirectory, Config]:
    """The run and its config, if it can be evaluated as far as its files' names tell.

    Raises:
        UsageError: no run, or not to be written to; OnlyRecorded: there is nothing to evaluate.
    """
    run, config = open_run(path)
    check_agents(run)
    if not os.access(path, os.W_OK):
        raise UsageError(f"evaluate: {path} cannot be written to; copy the run and evaluate the copy")
    return run, config


def _questions(options: Options, trained: list[str], notes: list[str]) -> list[Question]:
    path = find_data(options.questions, "--questions")
    kept, left_out = without_trained(load_questions(path), trained)
    notes += [f"question {name} is one of the training's and was left out" for name in left_out]
    if not kept:
        raise UsageError(f"{path}: all questions are the training's own; an evaluation needs others")
    return spread(kept, options.limit)


def _settings(config: Config, options: Options, questions: list[Question], cards: Sequence[Card]) -> dict[str, Any]:
    """What was asked; two evaluations of the same agents that agree here would give the same numbers."""
    judges = options.judges if options.judges is not None else HELD_OUT_CARDS
    asked = [(judge, "--judges") for judge in judges] + ([(options.judge, "--judge")] if options.judge else [])
    return {
        "questions": options.questions,
        "questions_sha256": fingerprint(questions),
        "n_questions": len(questions),
        "n_dialogues": 2 * len(questions),
        "turns": options.turns,
        "seed": options.seed,
        "max_new_tokens": options.max_new_tokens or config.generation.max_new_tokens,
        "temperature": config.generation.temperature,
        "rlhf_marl": metadata.version("rlhf-marl"),
        "asked": json.loads(json.dumps(asdict(options))),
        "judge": options.judge,
        "cards": {"own": [card_digest(card) for card in cards]}
        | {reference: card_digest(load_card(reference, where)) for reference, where in asked},
        "confidence": statistics.CONFIDENCE,
        "resamples": statistics.RESAMPLES,
    }


def _asks_the_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> bool:
    return is_current(before, path) and all(before.get(key) == value for key, value in now.items())


def _turns(questions: Iterable[Question], options: Options) -> int:
    return 2 * sum(n_turns(question, options.turns) for question in questions)


def _sampling(config: Config, options: Options, questions: Sequence[Question], chat_model: ChatModel) -> Sampling:
    """With room for whole dialogues: questions, answers and follow-ups, up to the model's context."""
    new_tokens = options.max_new_tokens or config.generation.max_new_tokens
    longest = max(
        len(chat_tokens(chat_model.tokenizer, [Message(role="user", content=question.prompt)], 10**9))
        for question in questions
    )
    room = chat_model.context_length - new_tokens
    if longest > room:
        context = chat_model.context_length
        raise UsageError(f"--questions: the longest is {longest} tokens; {config.model.name} takes {context} in all")
    return Sampling(options.seed, new_tokens, room, config.generation.temperature)


def _note_lengths(rows: Sequence[Row], config: Config, room: int, notes: list[str]) -> None:
    """Say where dialogues were longer than those of the training, or than the model's context."""
    trained = config.generation.max_prompt_tokens
    lengths = [row["prompt_tokens"] for row in rows]
    if max(lengths) > trained:
        notes.append(
            f"max_prompt_tokens was {trained} in training; here dialogues of up to {min(max(lengths), room)} tokens "
            "were read whole"
        )
    cut = sum(length > room for length in lengths)
    if cut:
        notes.append(f"in {cut} of {len(rows)} turns the dialogue was too long for the model; its newest part was read")


def _counted(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(stage, done, total)

    count(0)
    return count


def _write(path: Path, numbers: dict[str, Any], rows: list[Row]) -> None:
    """evaluation.json last: where it stands, the dialogues beside it belong to it."""
    (path / NUMBERS).unlink(missing_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in ((DIALOGUES, lines), (NUMBERS, text)):
        write_text(path / name, content)
