"""Read a run directory for the report; what is missing or damaged becomes a note."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, final

from rlhf_marl.config import Config, check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import DIALOGUES, NUMBERS, is_current, read_numbers
from rlhf_marl.files.jsonl import BadLine, complete_lines, parse_jsonl
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.runs.handed_out import choice, in_words
from rlhf_marl.runs.metrics import (
    VALUE_CORRELATION,
    before_and_after,
    first_and_last_fifth,
    is_finite,
    value_correlation,
)
from rlhf_marl.runs.validations import ended_early
from rlhf_marl.training.health import warnings_of

Row = dict[str, Any]
T = TypeVar("T")
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError)
_SERIES = ("td_error", "kl", "entropy", "disagreement_before", "disagreement_after")
_MUCH_TRUNCATION = 0.5
_DEEPEST = 50  # nesting of a JSON file
_MOST_AGENTS = 1000  # larger agent numbers are damage


@final
@dataclass
class RunRecord:
    """The content of one run directory, ready for the report.

    agents: reward model per agent, after the agent's name if it has one. episodes: [agent][dialogue] mean scaled
    reward over its turns. series: {metric: [agent][update]}. dialogues and evaluated: for the dialogue browser, see
    report.js. answers: the rows of evaluation_dialogues.jsonl. answered: one question's first turn, early and late in
    training, if it was asked in two iterations. health: warning sentences. critics: a sentence on how
    well values predict returns. validations: the readable rows of validation.jsonl, in order; used: a sentence on which
    adapters are handed out. under_way: training goes on.
    """

    path: Path
    name: str
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any] = field(default_factory=dict)
    cards: list[Any] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    episodes: list[list[float]] = field(default_factory=list)
    series: dict[str, list[list[float | None]]] = field(default_factory=dict)
    dialogues: list[Row] = field(default_factory=list)
    answered: Sequence[Mapping[str, Any]] = ()
    evaluated: list[Row] = field(default_factory=list)
    answers: list[Row] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    topology: dict[str, Any] | None = None
    health: list[str] = field(default_factory=list)
    critics: str = ""
    validations: list[Row] = field(default_factory=list)
    used: str = ""
    under_way: bool = False
    notes: list[str] = field(default_factory=list)


def read_run(path: Path, *, under_way: bool = False) -> RunRecord:
    """Read one run directory.

    under_way: for the process that trains the run.

    Raises:
        UsageError: the folder has none of a run's files.
    """
    if not any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl", "dialogues.jsonl")):
        raise UsageError(
            f"report: {str(path)!r} is not a run directory: no config.yaml, metrics.jsonl, dialogues.jsonl"
        )
    notes: list[str] = []
    content, text, config = _config(path, notes)
    run = RunRecord(path, path.resolve().name, content, text, under_way=under_way, notes=notes)
    run.environment = _json(path / "environment.json", dict, notes) or {}
    run.cards = _json(path / "reward_models.json", list, notes) or []
    run.topology = _json(path / "topology.json", dict, notes, optional=True)
    metrics = _lines(path / "metrics.jsonl", _metrics_row, notes)
    lines = _lines(path / "dialogues.jsonl", lambda row: (row, _training_turn(row)), notes)
    turns = [turn for _, turn in lines]
    run.evaluation = _evaluation(path, notes)
    if run.evaluation is not None:
        asked = _lines(path / DIALOGUES, lambda row: (row, _evaluation_turn(row)), notes)
        run.answers = [row for row, _ in asked]
        run.evaluated = _questions([turn for _, turn in asked])
    run.agents = _agents(metrics, run.cards, turns)
    run.answered = _answered(turns)
    run.dialogues = _dialogues(turns)
    run.episodes = [
        [_mean([s for turn in d["turns"] for s in turn["scores"][i : i + 1] if s is not None]) for d in run.dialogues]
        for i in range(len(run.agents))
    ]
    for key in _SERIES:
        run.series[key] = [[row[key] for row in metrics if row["agent"] == i] for i in range(len(run.agents))]
    run.health = list(_health(metrics, config))
    run.critics = _critics([row for row, _ in lines], config)
    if run.config.get("validation") is not None or (path / "validation.jsonl").exists():
        run.validations = _lines(path / "validation.jsonl", _validation, notes)
    if config is not None and choice(path, config, None) == "best":
        run.used = f"evaluate, export and the Python API use {in_words(path, config, 'best')}."
    _note_unfinished(run, metrics)
    return run


def _evaluation(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        _, found = read_numbers(path / NUMBERS)
    except FileNotFoundError:
        return None
    except (OSError, UsageError) as error:
        reason = str(error).removeprefix(f"{path}/")
        notes.append(f"evaluation.json is not shown: {reason}; evaluate again")
        return None
    if not is_current(found["settings"], path):
        notes.append("evaluation.json belongs to other adapters or checkpoints than the run has now; evaluate again")
    return found


def _config(path: Path, notes: list[str]) -> tuple[dict[str, Any], str, Config | None]:
    file = path / "config.yaml"
    try:
        text = file.read_text("utf-8", errors="replace")
        content = load_yaml(file)
    except (OSError, UsageError) as error:
        notes.append(f"config.yaml cannot be read ({error}); only recorded data is shown")
        return {}, "", None
    try:
        return content, text, check_config(content, "config.yaml")
    except UsageError as error:
        reason = str(error).splitlines()[0]
        notes.append(f"{reason}: the config is probably from another version of rlhf-marl; what can be read is shown")
        return content if isinstance(content, dict) else {}, text, None


def _json(file: Path, kind: type, notes: list[str], *, optional: bool = False) -> Any:
    try:
        found = json.loads(file.read_text("utf-8"), parse_constant=lambda constant: None)
        if _depth(found) > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
        if isinstance(found, kind):
            return found
        notes.append(f"{file.name} is damaged: it holds no {kind.__name__}")
    except FileNotFoundError:
        if not optional:
            notes.append(f"{file.name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file.name} is damaged: {error}")
    return None


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _lines(file: Path, understand: Callable[[Row], T], notes: list[str]) -> list[T]:
    """Every undamaged line that has the needed keys; a note counts the others."""
    try:
        content = file.read_bytes()
    except OSError as error:
        notes.append(f"{file.name} cannot be read: {error.strerror}")
        return []
    rows, damaged = [], []
    whole = complete_lines(content)
    if len(whole) < len(content):
        notes.append(f"{file.name}: the last line is incomplete and was skipped")
    for number, row in parse_jsonl(whole, nan_as_none=True):
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.problem)
            rows.append(understand(row))
        except MALFORMED:
            damaged.append(number)
    if damaged:
        notes.append(f"{file.name}: {len(damaged)} damaged lines were skipped; the first is line {damaged[0]}")
    return rows


def _metrics_row(row: Row) -> Row:
    if row["agent"] not in range(_MOST_AGENTS) or not isinstance(row["iteration"], int):
        raise ValueError
    return {**row, **{key: _number(row.get(key)) for key in _SERIES}, "reward_model": str(row["reward_model"])}


def _validation(row: Row) -> Row:
    team, agents = _number(row["team"]), [_number(mean) for mean in row["agents"]]
    if not isinstance(row["iteration"], int) or team is None:
        raise ValueError
    stop = row["early_stop"]
    return {
        "iteration": row["iteration"],
        "team": team,
        "agents": agents,
        "early_stop": stop if stop is None else str(stop),
    }


def _training_turn(row: Row) -> Row:
    return {
        "at": [int(row["iteration"]), int(row["dialogue"]), int(row["turn"])],
        "prompt": str(row["prompt"]),
        "responses": [str(response["text"]) for response in row["responses"]],
        "cut": [bool(response["truncated"]) for response in row["responses"]],
        "scores": [None if score is None else round(float(score), 3) for score in row["reward_scaled"]],
        "aggregate": str(row["aggregate"]),
        "fallback": bool(row["controller_fallback"]),
    }


def _answered(turns: list[Row]) -> Sequence[Mapping[str, Any]]:
    """The two turns of `before_and_after`, or none."""
    keys = ("iteration", "dialogue", "turn")
    return before_and_after([turn | dict(zip(keys, turn["at"], strict=True)) for turn in turns]) or ()


def _evaluation_turn(row: Row) -> Row:
    scores = {str(judge): [_number(score) for score in found] for judge, found in row["scores"].items()}
    return {
        "at": [str(row["question"]), int(row["turn"]), str(row["policy"])],
        "kind": str(row["kind"]),
        "prompt": str(row["prompt"]),
        "responses": [str(text) for text in row["responses"]],
        "cut": [bool(cut) for cut in row["truncated"]],
        "scores": scores,
        "aggregate": str(row["aggregate"]),
        "aggregate_scores": {str(judge): _number(score) for judge, score in row["aggregate_scores"].items()},
        "fallback": bool(row["fallbacks"]),
    }


def _dialogues(turns: list[Row]) -> list[Row]:
    """Group training turns by dialogue, in order of training."""
    found: dict[tuple[int, int], Row] = {}
    for turn in sorted(turns, key=lambda turn: turn["at"]):
        iteration, dialogue, _ = turn.pop("at")
        title = f"iteration {iteration}, dialogue {dialogue}"
        found.setdefault((iteration, dialogue), {"title": title, "turns": []})["turns"].append(turn)
    return list(found.values())


def _questions(turns: list[Row]) -> list[Row]:
    """Group evaluated turns by question; each turn has base and trained."""
    found: dict[str, dict[int, Row]] = {}
    kinds: dict[str, str] = {}
    for turn in turns:
        question, k, policy = turn.pop("at")
        kinds[question] = turn.pop("kind")
        if policy in ("base", "trained"):
            found.setdefault(question, {}).setdefault(k, {})[policy] = turn
    return [
        {"title": f"{question} ({kinds[question]})", "turns": [of_turn for _, of_turn in sorted(of_question.items())]}
        for question, of_question in found.items()
    ]


def _agents(metrics: list[Row], cards: list[Any], turns: list[Row]) -> list[str]:
    named = {row["agent"]: _described(row) for row in metrics}
    for i, card in enumerate(cards):
        if isinstance(card, dict):
            named.setdefault(i, str(card.get("name", "unknown")))
    n_agents = max([0, *(i + 1 for i in named), *(len(turn["scores"]) for turn in turns)])
    return [named.get(i, "unknown") for i in range(n_agents)]


def _described(row: Row) -> str:
    """An agent's reward model, after its name unless that is the default, `agent 0`."""
    name, reward_model = str(row.get("name", "")), str(row["reward_model"])
    return reward_model if name in ("", f"agent {row['agent']}") else f"{name}: {reward_model}"


def _health(rows: list[Row], config: Config | None) -> Iterator[str]:
    """Each symptom of rlhf_marl.training.health once per agent, with its frequency; and answers cut at the limit."""
    seen: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for row in rows:
        if config is None:
            break
        try:
            for kind, words in warnings_of(row, config):
                seen.setdefault((row["agent"], kind), []).append((row["update"], words))
        except MALFORMED:
            continue
    for (agent, _), found in sorted(seen.items()):
        often = f"in {len(found)} updates, first in update {found[0][0]}, last in update {found[-1][0]}"
        yield f"Agent {agent}: {found[-1][1]} ({often})."
    for agent in sorted({row["agent"] for row in rows}):
        cut = [row["truncated"] for row in rows if row["agent"] == agent and _number(row.get("truncated")) is not None]
        if cut and (share := first_and_last_fifth(cut)[1]) > _MUCH_TRUNCATION:
            yield (
                f"Agent {agent}: {share:.0%} of its answers in the last fifth of training were cut at the token "
                "limit, so rewards judge unfinished sentences; raise generation.max_new_tokens."
            )


def _critics(rows: list[Row], config: Config | None) -> str:
    try:
        found = None if config is None else value_correlation(rows, config.discount)
    except MALFORMED:
        return ""
    return "" if found is None else VALUE_CORRELATION.format(*found)


def _note_unfinished(run: RunRecord, metrics: list[Row]) -> None:
    done = max((row["iteration"] for row in metrics), default=-1) + 1
    asked = run.config.get("iterations")
    if run.under_way:
        run.notes.insert(0, f"The run is under way: {done} of {asked} iterations are finished")
        return
    if (reason := ended_early(run.validations, done)) is not None:
        run.notes.append(reason)
    elif isinstance(asked, int) and done < asked:
        run.notes.append(f"The run is not finished: {done} of {asked} iterations are recorded; continue with --resume")
    if not any(run.path.glob("adapters/agent_*/adapter_model.safetensors")):
        run.notes.append("The run has no adapters yet, so its agents cannot be loaded")


def _number(value: Any) -> float | None:
    """A finite number rounded to six digits, else None."""
    return float(f"{value:.6g}") if is_finite(value) else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
