"""Evaluate one run directory: base model against trained agents and their team, on held-out questions.

run directory -> system -> collect -> score -> summarise -> evaluation.json and evaluation_dialogues.jsonl
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rlhf_marl.config import Config
from rlhf_marl.config.validation import explain
from rlhf_marl.dialogue.speakers import decodings
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
    pairwise_judge,
)
from rlhf_marl.evaluation.loaded_run import load_run
from rlhf_marl.evaluation.questions import (
    SHIPPED,
    Question,
    columns_of,
    fingerprint,
    load_questions,
    spread,
    without_trained,
)
from rlhf_marl.evaluation.schema import VERSION
from rlhf_marl.evaluation.summary import summarise
from rlhf_marl.evaluation.trained_run import (
    check_agents,
    check_state,
    open_run,
    reward_cards,
    trained_questions,
)
from rlhf_marl.files.atomic import locked, write_text
from rlhf_marl.files.locate import find_data
from rlhf_marl.perf.memory import enough_memory
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.rewards import Card, load_card
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.handed_out import Choice, choice, in_words
from rlhf_marl.training.build import Agents

Progress = Callable[[str, int, int], None]
_LESS_MEMORY = "evaluate with a lower --max-new-tokens or fewer --turns or --judges"


_File = Annotated[str, BeforeValidator(lambda given: os.fspath(given) if isinstance(given, Path) else given)]
_Count = Annotated[int, Field(ge=1, strict=True)]


class Options(BaseModel):
    """Options of an evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: _File = SHIPPED
    """JSON Lines; see questions.py."""
    turns: _Count = 1
    """Turns of questions without follow-ups."""
    max_new_tokens: _Count | None = None
    """Token limit of an answer; as in training if None."""
    judges: list[_File] | None = None
    """Held-out cards; the shipped ones if None."""
    judge: _File | None = None
    """Card of a chat judge for win rates, instead of the held-out reward models."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 1
    """Seed of the sampled answers."""
    limit: _Count | None = None
    """Number of questions, spread evenly over the kinds; all if None."""
    adapters: Choice | None = None
    """The run's best or last adapters; if None, the best where held-out judges chose them in training."""


def check_options(given: Mapping[str, Any]) -> Options:
    """Validate options; raises UsageError with one line per mistake."""
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        raise UsageError(explain(error, "evaluate", given, Options.model_fields)) from None


def evaluate_run(path: Path, options: Options, progress: Progress) -> Evaluation:
    """Evaluate one run and write the two files into it; an earlier evaluation with the same settings is reused.

    Args:
        progress: receives (stage, steps done, steps in all).

    Raises:
        UsageError: not a run, unusable questions or judges, or another process evaluates the run; OnlyRecorded: no
            agents.
        RunStopped: a reward model or the controller failed, or memory ran out.
    """
    run, config = check_run(path)
    with locked(path, "evaluate", ".evaluation.lock"), enough_memory(_LESS_MEMORY):
        return _evaluate(run, config, options, progress)


def _evaluate(run: RunDirectory, config: Config, options: Options, progress: Progress) -> Evaluation:
    began, path, notes = time.monotonic(), run.path, list[str]()
    questions = _questions(options, trained_questions(config, run, notes), notes)
    cards = reward_cards(run, config, notes)
    which = choice(path, config, options.adapters)
    settings = _settings(config, options, questions, cards) | {"agents": which}
    stored = read_evaluation(path)
    if stored is not None and is_current(before := stored.numbers["settings"], path) and before | settings == before:
        return stored
    check_state(run, config, notes)
    if options.max_new_tokens is not None:
        config = _with_limit(config, options.max_new_tokens)
    if which == "best":
        notes.append(f"evaluated {in_words(path, config, which)}; --adapters last evaluates the last")
    settings |= agents_fingerprint(path, which)  # before loading, so that newer agents do not pass for these
    loaded = load_run(run, config, cards, which, notes)
    agents, own = loaded.agents, loaded.scorers
    sampling = _sampling(config, options, questions, agents)
    settings |= {"adapters": loaded.source}
    held_out, missing = held_out_scorers(own, options.judges, agents.sampler)
    pairwise = pairwise_judge(options.judge, agents.sampler) if options.judge is not None else None
    scorers = [*own, *held_out]
    for scorer in scorers:
        scorer.card.check_columns(columns_of(questions), f"{options.questions}: columns")

    n_rows = 2 * sum(n_turns(question, options.turns) for question in questions)
    rows: list[Row] = []
    progress("playing", 0, n_rows)
    for row in collect(agents, loaded.controller, sampling, questions, options.turns):
        rows.append(row)
        progress("playing", len(rows), n_rows)
    _note_lengths(rows, config, sampling.max_prompt_tokens, notes)
    for number, scorer in enumerate(scorers):
        progress("scoring", number, len(scorers))
        score(rows, scorer, {question.id: question.columns for question in questions})
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
    """Open the run and its config. Only checks which files exist, not their content, so it is fast.

    Raises:
        UsageError: not a run, or not writable; OnlyRecorded: there is nothing to evaluate.
    """
    run, config = open_run(path, "evaluate")
    check_agents(run)
    if not os.access(path, os.W_OK):
        raise UsageError(f"evaluate: {path} cannot be written to; copy the run and evaluate the copy")
    return run, config


def _questions(options: Options, trained: list[str], notes: list[str]) -> list[Question]:
    path = find_data(options.questions, "--questions")
    kept, left_out = without_trained(load_questions(path), trained)
    notes += [f"question {name} was used in training and is excluded" for name in left_out]
    if not kept:
        raise UsageError(f"{path}: all questions were used in training; an evaluation needs others")
    return spread(kept, options.limit)


def _settings(config: Config, options: Options, questions: list[Question], cards: Sequence[Card]) -> dict[str, Any]:
    """The evaluation's settings. Evaluations of the same agents with equal settings give the same numbers."""
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
        "asked": options.model_dump(mode="json"),
        "judge": options.judge,
        "cards": {"own": [card_digest(card) for card in cards]}
        | {reference: card_digest(load_card(reference, where)) for reference, where in asked},
        "confidence": statistics.CONFIDENCE,
        "resamples": statistics.RESAMPLES,
    }


def _with_limit(config: Config, max_new_tokens: int) -> Config:
    """The config with this token limit for the answers of all agents."""
    generation = config.generation.model_copy(update={"max_new_tokens": max_new_tokens})
    agents = [
        agent.model_copy(update={"generation": agent.generation.model_copy(update={"max_new_tokens": None})})
        for agent in config.agents
    ]
    return config.model_copy(update={"generation": generation, "agents": agents})


def _sampling(config: Config, options: Options, questions: Sequence[Question], agents: Agents) -> Sampling:
    """Sampling with a prompt budget for complete dialogues, up to the model's context length."""
    chat_model, groups = agents.chat_model, decodings(config)
    new_tokens = max(group.max_new_tokens for group in groups)
    longest = max(
        len(chat_tokens(chat_model.tokenizer, speaker.reads([Message(role="user", content=question.prompt)]), 10**9))
        for question in questions
        for speaker in agents.speakers
    )
    room = chat_model.context_length - new_tokens
    if longest > room:
        context = chat_model.context_length
        raise UsageError(
            f"--questions: the longest question has {longest} tokens; with an answer it exceeds {config.model.name}'s "
            f"context of {context} tokens"
        )
    return Sampling(options.seed, room, groups)


def _note_lengths(rows: Sequence[Row], config: Config, room: int, notes: list[str]) -> None:
    """Note if dialogues were longer than training allowed, or than the model's context."""
    trained = config.generation.max_prompt_tokens
    lengths = [row["prompt_tokens"] for row in rows]
    if max(lengths) > trained:
        notes.append(
            f"max_prompt_tokens was {trained} in training; here dialogues of up to {min(max(lengths), room)} tokens "
            "were not truncated"
        )
    cut = sum(length > room for length in lengths)
    if cut:
        notes.append(f"in {cut} of {len(rows)} turns the dialogue was too long for the model: its oldest messages left")


def _write(path: Path, numbers: dict[str, Any], rows: list[Row]) -> None:
    """Write both files; evaluation.json last, so that it never exists without its dialogues."""
    (path / NUMBERS).unlink(missing_ok=True)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(path / DIALOGUES, "".join(lines))
    write_text(path / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
