"""Peak memory of a training iteration for 1, 3 and 8 agents, each in a process of its own, and the ratios to one agent.

python benchmarks/memory.py [CONFIG] [--json FILE]
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import click

AGENTS = (1, 3, 8)


def peak_megabytes(config: str, n_agents: int) -> float:
    """Build the config with n agents, all on its first reward model, and play and learn from one iteration."""
    import torch

    from rlhf_marl.config import check_config, load_config
    from rlhf_marl.dialogue.build import build
    from rlhf_marl.dialogue.train import run_iteration
    from rlhf_marl.stopwatch import stopwatch

    content = load_config(config).model_dump()
    content["agents"] = content["agents"][:1] * n_agents
    content["topology"] |= {"graph": "complete"}
    system = build(check_config(content, config), config, torch.device("cpu"))
    with stopwatch(system.model.device) as watch:
        run_iteration(system, 0, 0, watch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
@click.option("--agents", "only", type=int, hidden=True)
def main(config: str, output: Path | None, only: int | None) -> None:
    """Measure CONFIG."""
    if only is not None:
        click.echo(peak_megabytes(config, only))
        return
    peaks = {}
    for n in AGENTS:
        child = [sys.executable, __file__, config, "--agents", str(n)]
        peaks[n] = float(subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout)
        click.echo(f"{n} agent{'s' * (n > 1):1}  {peaks[n]:7.0f} MB  {peaks[n] / peaks[1]:.2f} x one agent")
    if output is not None:
        numbers = {f"megabytes_{n}": peaks[n] for n in AGENTS} | {
            f"memory_{n}_over_1": peaks[n] / peaks[1] for n in AGENTS
        }
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
