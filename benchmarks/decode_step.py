"""A decode step on a CPU: plain weights, packed ones of half precision, and these in a straight line. In one run.

python benchmarks/decode_step.py [CONFIG] [--json FILE]
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
from rlhf_marl.policy.generation import DecodeStep, module_step
from rlhf_marl.policy.prefix_cache import with_room
from rlhf_marl.policy.straight_step import decode_step
from rlhf_marl.training.build import Agents, build_agents, fits_into_memory

STEPS, REPEATS, PROMPT = 12, 7, 60


@torch.inference_mode()
def step_seconds(agents: Agents, decode: DecodeStep, rows: int, active: slice | None) -> float:
    """Median time of one decode step after a prompt of 60 tokens."""
    model = agents.chat_model.model
    ids = torch.arange(100, 100 + PROMPT).expand(rows, -1)
    mask = torch.ones_like(ids)
    cache = DynamicCache(config=model.config)
    times = []
    with agents.adapters.use(active):
        model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = with_room(cache, 1, STEPS)
        for step in range(STEPS):
            mask = torch.cat([mask, mask[:, :1]], dim=-1)
            position = torch.full_like(ids[:, :1], PROMPT + step)
            started = time.perf_counter()
            decode(ids[:, :1], position, mask, cache)
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
    n, packed_rows = loaded.dialogues, half_linear.MOST_ROWS
    model, numbers = agents.chat_model.model, {}
    for name, rows, active in (("agents", agents.adapters.n_agents * n, slice(None)), ("controller", n, None)):
        ways = {
            "plain": (0, module_step(model)),
            "packed": (packed_rows, module_step(model)),
            "straight": (packed_rows, decode_step(model, agents.adapters, active)),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way, (half_linear.MOST_ROWS, decode) in ways.items():
                times[way].append(step_seconds(agents, decode, rows, active))
        medians = {way: statistics.median(measured) for way, measured in times.items()}
        numbers |= {f"plain_over_{way}_{name}": medians["plain"] / medians[way] for way in ("packed", "straight")}
        shown = "  ".join(f"{way} {1e3 * median:.0f} ms" for way, median in medians.items())
        click.echo(f"{name}: {rows} rows  {shown}  {numbers[f'plain_over_straight_{name}']:.2f} x")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
