"""The model card of one agent: the hub's metadata header, and text from model_card.md.jinja.

It contains no model output. Text that people wrote (names, descriptions, questions) is escaped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from rlhf_marl.config import Config
from rlhf_marl.config.schema import DatasetPrompts, FixedPrompt, JsonlPrompts
from rlhf_marl.dialogue.speakers import speakers_of
from rlhf_marl.evaluation.schema import Numbers
from rlhf_marl.hub.base_model import Base
from rlhf_marl.hub.results import Interval, hub_results, measured, training_rewards
from rlhf_marl.rewards import Card
from rlhf_marl.rewards.base import public_name
from rlhf_marl.sanitise import markdown_code, markdown_text
from rlhf_marl.training.health import warnings_of

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_PATH = re.compile(r"[/\\]")  # warnings that name a file may contain a local path
_HUB_LIKE = re.compile(r"[\w.-]+/[\w.-]+")


@final
class Verbatim(str):
    """Text that is not escaped: Markdown, or the content of a code block."""


@final
@dataclass(frozen=True, slots=True)
class RunFacts:
    """The contents of a run directory that the card needs.

    Attributes:
        rows: the readable rows of metrics.jsonl, up to the adapters' last iteration.
        iterations: how many iterations the adapters were trained for, if known.
        cards: from reward_models.json, one per agent.
        packages: from environment.json, name to version; empty if it cannot be read.
    """

    config: Config
    rows: Sequence[dict[str, Any]]
    iterations: int | None
    cards: Sequence[Card]
    packages: dict[str, str]
    evaluation: Numbers | None


def model_card(facts: RunFacts, agent: int, base: Base, *, merged: bool) -> ModelCard:
    """The card of one agent, ready to save as README.md."""
    own = facts.cards[agent]
    found = facts.evaluation
    evaluation = next((e for e in found.agents if e.agent == agent), None) if found else None
    config = facts.config
    speaker = speakers_of(config, "config.yaml")[agent]
    title = f"{speaker.name[:1].upper()}{speaker.name[1:]} ({own.name})"
    text = (
        _environment()
        .from_string(_TEMPLATE.read_text("utf-8"))
        .render(
            title=title,
            merged=merged,
            base=base,
            agent=agent,
            own=own,
            role=repr(speaker.role) if speaker.role else "",
            cards=facts.cards,
            data=_data(config),
            controller=_controller(config),
            config=config,
            iterations=facts.iterations,
            targets=_layers(config.lora.targets),
            excluded=_layers(config.lora.exclude) if config.lora.exclude else "",
            started_from=Path(config.agents[agent].adapter or "").name,
            software=", ".join(f"{name} {version}" for name, version in facts.packages.items()),
            evaluation=evaluation,
            found=found,
            questions=Path(found.settings.questions).name if found else "",
            measured=list(measured(evaluation)) if evaluation else [],
            training=training_rewards(facts.rows, agent),
            symptoms=_symptoms(facts, agent),
            narrow=isinstance(config.prompts, FixedPrompt),
            warnings=[words for words in found.warnings if not _PATH.search(words)] if found else [],
        )
    )
    results = hub_results(found, evaluation) if found and evaluation else []
    header = _header(config, base, merged=merged, name=title, results=results)
    return ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}")


def _symptoms(facts: RunFacts, agent: int) -> set[str]:
    """Kinds of the agent's health warnings at the end of training; none if the row is damaged."""
    last = [row for row in facts.rows if row["agent"] == agent][-1:]
    try:
        return {kind for row in last for kind, _ in warnings_of(row, facts.config)}
    except (KeyError, TypeError, ZeroDivisionError):
        return set()


def _layers(names: str | list[str]) -> str:
    if names == "all-linear":
        return "all linear layers but the last"
    return Verbatim(markdown_code(names)) if isinstance(names, str) else ", ".join(names)


def _header(config: Config, base: Base, *, merged: bool, name: str, results: list[EvalResult]) -> ModelCardData:
    licence = base.licence
    header = ModelCardData(
        base_model=base.hub_id,
        library_name="transformers" if merged else "peft",
        license=licence.identifier or "unknown",
        license_name=licence.name,
        license_link=licence.link,
        pipeline_tag="text-generation",
        tags=["rlhf", "multi-agent", "rlhf-marl", *(["lora"] if not merged else [])],
        datasets=_hub_dataset(config),
        model_name=name if results else None,
        eval_results=results or None,
    )
    if base.hub_id:
        header["base_model_relation"] = "finetune" if merged else "adapter"
    return header


def _hub_dataset(config: Config) -> str | None:
    """The Hub dataset that the prompts come from, if there is one."""
    prompts = config.prompts
    if not isinstance(prompts, DatasetPrompts) or Path(prompts.name).exists():
        return None
    return prompts.name if _HUB_LIKE.fullmatch(prompts.name) else None


def _data(config: Config) -> Verbatim:
    prompts = config.prompts
    match prompts:
        case FixedPrompt():
            said = f"Every dialogue began with the same question: “{markdown_text(prompts.question)}”."
        case JsonlPrompts():
            said = f"Dialogues began with the prompts of a file named {markdown_text(Path(prompts.path).name)}."
        case DatasetPrompts():
            parts = [markdown_text(_hub_dataset(config) or Path(prompts.name).name)]
            parts += [f"subset {markdown_text(prompts.subset)}"] if prompts.subset else []
            parts += [f"split {markdown_text(prompts.split)}", f"column {markdown_text(prompts.column)}"]
            parts += [f"revision {markdown_text(prompts.revision)}"] if prompts.revision else []
            said = f"Dialogues began with the prompts of the data set {', '.join(parts)}."
    return Verbatim(said)


def _controller(config: Config) -> str:
    match config.controller.kind:
        case "shared":
            return "the base model without adapters"
        case "transformers":
            return f"the model {public_name(config.controller.model.name)}"
        case "openai":
            return f"the model {public_name(config.controller.model)} behind an endpoint"
        case kind:
            return f"a {kind} one"


def _environment() -> Environment:
    """Jinja2 that escapes all text except Verbatim."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_escaped,
    )
    environment.globals |= {
        "code": lambda text: Verbatim(markdown_code(text)),
        "verbatim": Verbatim,
        "number": _number,
        "between": _between,
    }
    return environment


def _escaped(value: Any) -> Any:
    return markdown_text(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _between(value: Interval) -> str:
    return "-" if value.low is None or value.high is None else f"{value.low:.3f} to {value.high:.3f}"
