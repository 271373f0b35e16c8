"""Which departures from the paper's letter learn, in a small copy of configs/paper.yaml?

python -m benchmarks.small_paper [--iterations N] [--seeds N] [--only NAME ...]

Three agents over a tiny random model write eight bytes; their rewards count three ranges of characters, scaled to
deviation 1. Everything else is as in configs/paper.yaml, except Adam's step size of 3e-3 for the tiny adapters. Prints
the change of the team's mean reward from the first to the last fifth of the updates, per seed.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import rlhf_marl
from rlhf_marl.runs.metrics import first_and_last_fifth
from tests.conftest import TINY, tiny_tokenizer

RANGES = {"signs": (32, 64), "capitals": (64, 96), "letters": (96, 128)}
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "as printed": {"actor": {"signal": "td_q_literal"}, "critic": {"start": "restart", "initial_value": "network"}},
    "td_q, warm": {"critic": {"initial_value": "network"}},
    "td_q, warm, zero": {},
    "td_q, restart, zero": {"critic": {"start": "restart"}},
    "td_q_literal, warm, zero": {"actor": {"signal": "td_q_literal"}},
    "control": {"actor": {"step_size": 1e-12}, "critic": {"initial_value": "network"}},
}


def share(prompts: list[str], responses: list[str], *, low: int, high: int) -> list[float]:
    """Share of characters in the range."""
    return [sum(low <= ord(c) < high for c in text) / max(1, len(text)) for text in responses]


def content(folder: Path) -> dict[str, Any]:
    """The small copy's config; writes its model and reward cards to the folder."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=2)).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, (low, high) in RANGES.items():
        card = {"name": name, "kind": "callable", "function": f"{__file__}:share", "scale": 0.14, "offset": -0.12}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(card | {"arguments": {"low": low, "high": high}}))
    copy: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "configs" / "paper.yaml").read_text())
    return copy | {
        "model": {"name": str(folder / "model")},
        "lora": {"rank": 4, "alpha": 16.0},
        "agents": [{"reward_model": str(folder / f"{name}.yaml")} for name in RANGES],
        "generation": {"max_new_tokens": 8, "max_prompt_tokens": 64},
        "controller": {
            "kind": "scripted",
            "aggregate": "{{ responses[0] }}{{ responses[1] }}",
            "next_prompts": ["and then?", "why?"],
        },
        "checkpoint_every": 100_000,
    }


@click.command()
@click.option("--iterations", default=200, show_default=True, type=click.IntRange(5))
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--only", multiple=True, type=click.Choice(list(ARMS)), help="Run this arm alone; repeatable.")
def main(iterations: int, seeds: int, only: tuple[str, ...]) -> None:
    """The table of docs/algorithm.md."""
    with tempfile.TemporaryDirectory() as temporary:
        base = content(Path(temporary))
        base["actor"] |= {"step_size": 3e-3}
        for name in only or ARMS:
            changes = []
            for seed in range(seeds):
                arm = base | {key: base[key] | change for key, change in ARMS[name].items()}
                run_dir = Path(temporary) / f"{list(ARMS).index(name)}_{seed}"
                run = rlhf_marl.train(arm | {"seed": seed, "iterations": iterations}, run_dir=run_dir)
                first, last = first_and_last_fifth(run.metrics.groupby("update")["reward_scaled"].mean().tolist())
                changes.append(last - first)
            click.echo(json.dumps({name: [round(change, 2) for change in changes]}))


if __name__ == "__main__":
    main()
