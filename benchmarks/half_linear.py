"""Decode step with packed half-precision weights against plain ones, interleaved in one run, on a config's model.

python benchmarks/half_linear.py [CONFIG] [--json FILE]
"""

import json
import statistics
import time
from pathlib import Path

import click
import torch
from transformers import DynamicCache

from rlhf_marl.config import load_config
from rlhf_marl.policy import half_linear
from rlhf_marl.training.build import Agents, build_agents, fits_into_memory

STEPS, REPEATS, PROMPT = 12, 7, 60


@torch.inference_mode()
def step_seconds(agents: Agents, rows: int, active: slice | None) -> float:
    """Median time of one decode step after a prompt of 60 tokens."""
    model = agents.chat_model.model
    ids = torch.arange(100, 100 + PROMPT).expand(rows, -1)
    mask = torch.ones_like(ids)
    cache = DynamicCache(config=model.config)
    times = []
    with agents.adapters.use(active):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(STEPS):
            mask = torch.cat([mask, mask[:, :1]], dim=-1)
            started = time.perf_counter()
            model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache, use_cache=True)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the ratios as a flat JSON object.")
def main(config: str, output: Path | None) -> None:
    """Measure CONFIG's model."""
    loaded = load_config(config)
    with fits_into_memory(config):
        agents = build_agents(loaded, config, torch.device("cpu"))
    n = loaded.dialogues
    numbers = {}
    for name, rows, active in (("agents", agents.adapters.n_agents * n, slice(None)), ("controller", n, None)):
        times: dict[int, list[float]] = {0: [], half_linear.MOST_ROWS: []}
        for _ in range(REPEATS):
            for most_rows, measured in times.items():
                half_linear.MOST_ROWS = most_rows
                measured.append(step_seconds(agents, rows, active))
        plain, fast = (statistics.median(measured) for measured in times.values())
        numbers[f"plain_over_packed_{name}"] = plain / fast
        click.echo(f"{name}: {rows} rows  plain {plain * 1e3:.0f} ms  packed {fast * 1e3:.0f} ms  {plain / fast:.2f} x")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
