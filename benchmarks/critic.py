"""How well a V critic predicts the returns of dialogues that it has not learned from, against ridge regression.

python benchmarks/critic.py [CONFIG] [--dialogues N] [--json FILE]

The untrained agents play N dialogues. A critic learns from 40 of them, four at a time and turn by turn, as in ten
iterations of the quickstart; the correlation of its values with the team's returns is measured on the others. This is
repeated for several random orders. The first turn is left out, since all dialogues begin with the same state.
"""

import json
from pathlib import Path

import click
import torch
from torch import Tensor

from rlhf_marl.algorithm.critic import Critic, Transition
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.algorithm.network import Network
from rlhf_marl.config import Config, load_config
from rlhf_marl.training.build import build
from rlhf_marl.training.loop import first_prompts

LEARNED, BATCH = 40, 4


def played(config: Config, n_dialogues: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features x^(0) (dialogues, turns, m), sums of token embeddings (dialogues, turns, e), team rewards (dialogues,
    turns) of dialogues between the untrained agents."""
    experiment = build(config, "config", torch.device("cpu"))
    features, embeddings = experiment.team.learner.features, experiment.team.learner.chat_model.model
    table = embeddings.get_input_embeddings().weight.detach()
    found: list[list[Tensor]] = [[], [], []]
    for iteration in range(n_dialogues // config.dialogues):
        turns = [experiment.team.score(turn) for turn in experiment.player.play(first_prompts(experiment, iteration))]
        found[0].append(torch.stack([features(turn.states) for turn in turns], dim=1))
        found[1].append(torch.stack([torch.stack([table[s].sum(0) for s in turn.states]) for turn in turns], dim=1))
        found[2].append(torch.stack([turn.reward_scaled.mean(0) for turn in turns], dim=1))
        click.echo(f"{(iteration + 1) * config.dialogues} of {n_dialogues} dialogues", err=True)
    x0, bags, rewards = (torch.cat(of) for of in found)
    return x0, torch.nn.functional.normalize(bags, dim=-1), rewards


def returns_of(rewards: Tensor, discount: float) -> Tensor:
    """Σ_l γ^l r_{k+l}: (dialogues, turns) -> (dialogues, turns)."""
    result = rewards.clone()
    for k in range(rewards.shape[1] - 2, -1, -1):
        result[:, k] += discount * result[:, k + 1]
    return result


def critic_values(config: Config, x0: Tensor, rewards: Tensor, order: Tensor, seed: int, initial_value: str) -> Tensor:
    """V of all turns after learning from the first dialogues of `order`: (dialogues, turns)."""
    generator = torch.Generator().manual_seed(seed)
    given, last = config.critic, rewards.shape[1] - 1
    network = Network(given.width, given.depth, generator=generator, output_scale=given.output_scale)
    critic = Critic(
        network,
        network.initial_weights(generator),
        (1,),
        MatrixMixer(torch.ones(1, 1), 1),
        step_size=given.step_size,
        radius=given.radius,
        optimizer=given.optimizer,
        initial_value=initial_value,  # type: ignore[arg-type]
    )
    for batch in order[:LEARNED].split(BATCH):
        for k in range(last + 1):
            discount = torch.tensor([[config.discount if k < last else 0.0]])
            following = x0[batch, min(k + 1, last)][None]
            critic.update([Transition(x0[batch, k][None], rewards[batch, k][None], following, discount)] * given.steps)
    return critic.value(x0.flatten(0, 1)[None])[0].view(rewards.shape)


def ridge_values(features: Tensor, returns: Tensor, order: Tensor, penalty: float) -> Tensor:
    """Ridge regression of the later turns' returns on the same dialogues: (dialogues, turns)."""
    x = features[order[:LEARNED], 1:].flatten(0, 1).double()
    y = returns[order[:LEARNED], 1:].flatten().double()
    x, y = x - x.mean(0), y - y.mean()
    weights = torch.linalg.solve(x @ x.T + penalty * torch.eye(len(x)).double(), y)
    return (features.double() @ (x.T @ weights)).float()


def correlation(values: Tensor, returns: Tensor, order: Tensor) -> float:
    """On the dialogues that were not learned from, each turn number centred by itself."""
    pairs = torch.stack([values, returns])[:, order[LEARNED:], 1:]
    return torch.corrcoef((pairs - pairs.mean(1, keepdim=True)).flatten(1))[0, 1].item()


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--dialogues", default=96, show_default=True, type=click.IntRange(LEARNED + 8))
@click.option("--orders", default=12, show_default=True, type=click.IntRange(2))
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(config: str, dialogues: int, orders: int, output: Path | None) -> None:
    """The numbers on the critic in docs/results.md."""
    loaded = load_config(config)
    x0, bags, rewards = played(loaded, dialogues)
    returns, unit = returns_of(rewards, loaded.discount), torch.nn.functional.normalize(x0, dim=-1)
    found: dict[str, list[float]] = {}
    for seed in range(orders):
        order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
        for start in ("network", "zero"):
            values = critic_values(loaded, x0, rewards, order, seed, start)
            found.setdefault(f"critic, initial_value {start}", []).append(correlation(values, returns, order))
        for name, features in (("the same features", unit), ("sums of token embeddings", bags)):
            for penalty in (0.1, 1.0):
                values = ridge_values(features, returns, order, penalty)
                label = f"ridge regression on {name}, penalty {penalty}"
                found.setdefault(label, []).append(correlation(values, returns, order))
    numbers = {}
    for name, of_orders in found.items():
        mean, error = torch.tensor(of_orders).mean().item(), torch.tensor(of_orders).std().item() / orders**0.5
        numbers[name] = mean
        click.echo(f"{name}: {mean:+.2f} (standard error over orders {error:.2f})")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
