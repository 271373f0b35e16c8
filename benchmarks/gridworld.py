"""The compiled training loop of the grid against a plain autograd loop, interleaved in one run; and how its cost grows.

python benchmarks/gridworld.py [--json FILE]

The plain loop is what one would write first: one seed at a time, torch autograd, the same algorithm at the paper's
defaults (N = 2, m = 20, D = 5, K = M = 1, 10 rounds of gossip). A seed-step is one iteration of Algorithm 1 for one
seed.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from rlhf_marl.gridworld.draws import Draws, Noise, draw_all
from rlhf_marl.gridworld.encoding import encode_actor, encode_critic
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.spread import EPISODE, NEXT_CELL, local_rewards
from rlhf_marl.gridworld.training import train

DEFAULTS = Setting(signal="td_q")
SEEDS, REPEATS = 100, 5
STEPS = 1000  # iterations of the compiled loop in one measurement at 100 seeds
PLAIN_STEPS = 150
GROWTH = {
    "seeds": [(f"{n}", {}, n) for n in (1, 10, 100)],
    "N": [(f"{n}", {"n_agents": n}, 20) for n in (2, 3, 4)],
    "m": [(f"{m}", {"width": m}, 20) for m in (10, 20, 40)],
    "D": [(f"{d}", {"depth": d}, 20) for d in (5, 20, 40)],
    "K": [(f"{k}", {"critic_steps": k}, 20) for k in (1, 5)],
    "M": [(f"{m}", {"actor_samples": m}, 20) for m in (1, 5)],
}


class PlainNetwork(torch.nn.Module):
    """Eq. (5) as a module."""

    def __init__(self, h: np.ndarray, w: np.ndarray, b: np.ndarray) -> None:
        super().__init__()
        self.h = torch.nn.Parameter(torch.tensor(h, dtype=torch.float32))
        self.w = torch.nn.ParameterList(torch.tensor(layer, dtype=torch.float32) for layer in w)
        self.b = torch.nn.Parameter(torch.tensor(b, dtype=torch.float32))

    def forward(self, x: np.ndarray) -> torch.Tensor:
        hidden = torch.as_tensor(x, dtype=torch.float32) @ self.h
        for layer in self.w:
            hidden = torch.relu(layer @ hidden) / layer.shape[0] ** 0.5
        return self.b @ hidden


def draw(policy: torch.distributions.Categorical, uniform: float) -> torch.Tensor:
    """The first action whose cumulated probability exceeds the uniform number."""
    return (uniform >= policy.probs.cumsum(-1)[:-1]).sum()


def plain_loop(s: Setting, draws: Draws, iterations: int) -> tuple[list[PlainNetwork], list[PlainNetwork]]:
    """Algorithms 1 and 2 with K = M = 1 and a Q critic for the world's first seed; returns actors and critics."""
    n = s.n_agents
    noise = Noise(0, 0, n)
    power = torch.linalg.matrix_power(torch.tensor(draws.matrix[0]), s.gossip_rounds).float()
    critics = [PlainNetwork(draws.critic_h[0], draws.critic_w[0], draws.critic_b[0]) for _ in range(n)]
    actors = [PlainNetwork(draws.actor_h[0, i], draws.actor_w[0, i], draws.actor_b[0, i]) for i in range(n)]
    start = [layer.detach().clone() for layer in critics[0].w]
    positions, landmarks = draws.positions[0], draws.landmarks[0]
    for t in range(iterations):
        (uniforms,), (redrawn,) = noise.take(1)
        policies = [
            torch.distributions.Categorical(logits=actor(encode_actor(positions, i))) for i, actor in enumerate(actors)
        ]
        actions = [draw(policy, uniforms[i]) for i, policy in enumerate(policies)]
        taken = np.array([int(action) for action in actions])
        reached = NEXT_CELL[positions, taken]
        rewards = local_rewards(s.split, reached, landmarks)
        following = redrawn if (t + 1) % EPISODE == 0 else reached
        with torch.no_grad():
            next_actions = np.array(
                [
                    int(
                        draw(torch.distributions.Categorical(logits=actor(encode_actor(following, i))), uniforms[n + i])
                    )
                    for i, actor in enumerate(actors)
                ]
            )
        x, next_x = encode_critic(positions, taken), encode_critic(following, next_actions)
        averages = []
        for critic, reward in zip(critics, rewards, strict=True):
            if s.start == "restart":
                with torch.no_grad():
                    for layer, initial in zip(critic.w, start, strict=True):
                        layer.copy_(initial)
            value = critic(x)
            with torch.no_grad():
                delta = value - reward - s.discount * critic(next_x)
            gradients = torch.autograd.grad(value, list(critic.w))
            with torch.no_grad():
                average = []
                for layer, gradient, centre in zip(critic.w, gradients, start, strict=True):
                    moved = layer - s.critic_step_size * delta * gradient
                    distance = (moved - centre).norm()
                    if s.radius is not None and distance > s.radius:
                        moved = centre + (moved - centre) * s.radius / distance
                    average.append((layer + moved) / 2)
                averages.append(average)
        with torch.no_grad():
            for i, critic in enumerate(critics):
                for level, layer in enumerate(critic.w):
                    layer.copy_(sum(power[i, j] * averages[j][level] for j in range(n)))
            deltas = torch.stack(
                [
                    critic(x) - reward - s.discount * critic(next_x)
                    for critic, reward in zip(critics, rewards, strict=True)
                ]
            )
            signals = -(power @ deltas.float())
        for actor, policy, action, signal in zip(actors, policies, actions, signals, strict=True):
            direction = torch.autograd.grad(signal * policy.log_prob(action), list(actor.parameters()))
            norm = torch.sqrt(sum(part.square().sum() for part in direction))
            with torch.no_grad():
                for parameter, part in zip(actor.parameters(), direction, strict=True):
                    if norm > 0:
                        parameter += s.actor_step_size * part / norm
        positions = following
    return actors, critics


def compiled_rate(s: Setting, draws: Draws, iterations: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seed-steps of the compiled loop in a second of the clock."""
    seeds = range(len(draws.landmarks))
    began = clock()
    train(s, 0, seeds, [iterations], draws=draws)
    return len(seeds) * iterations / (clock() - began)


def plain_rate(s: Setting, draws: Draws, iterations: int) -> float:
    """Seed-steps a second of the plain loop."""
    began = time.perf_counter()
    plain_loop(s, draws, iterations)
    return iterations / (time.perf_counter() - began)


@click.command()
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(output: Path | None) -> None:
    """Measure."""
    if output is not None and not output.parent.is_dir():
        raise click.UsageError(f"--json: {str(output.parent)!r} is not a folder")
    draws = draw_all(DEFAULTS, 0, range(SEEDS))
    began = time.perf_counter()
    train(DEFAULTS, 0, range(1), [1])
    click.echo(f"compiled or loaded from the cache in {time.perf_counter() - began:.1f} s")
    torch.set_num_threads(1)  # the matrices are far too small for more
    plain_rate(DEFAULTS, draws, 10)
    plain, compiled = [], []
    for _ in range(REPEATS):
        plain.append(plain_rate(DEFAULTS, draws, PLAIN_STEPS))
        compiled.append(compiled_rate(DEFAULTS, draws, STEPS))
    numbers = {
        "seed_steps_per_second": statistics.median(compiled),
        "autograd_seed_steps_per_second": statistics.median(plain),
        "speedup_over_autograd": statistics.median(c / p for c, p in zip(compiled, plain, strict=True)),
    }
    click.echo(f"autograd, one seed at a time  {numbers['autograd_seed_steps_per_second']:10,.0f} seed-steps/s")
    click.echo(f"compiled, {SEEDS} seeds          {numbers['seed_steps_per_second']:10,.0f} seed-steps/s")
    click.echo(f"ratio                         {numbers['speedup_over_autograd']:10,.0f} x")
    for what, cases in GROWTH.items():
        for label, changes, seeds in cases:
            s = DEFAULTS.model_copy(update=changes)
            draws = draw_all(s, 0, range(seeds))
            budget = max(1, seeds * s.n_agents * s.depth * s.steps_per_iteration * s.width // 20)
            iterations = max(50, 400_000 // budget)
            # Of all threads together: what else the machine does hardly changes it.
            rate = statistics.median(compiled_rate(s, draws, iterations, time.process_time) for _ in range(3))
            numbers[f"processor_microseconds_{what}_{label}"] = 1e6 / rate
            click.echo(f"{what:>5} = {label:<4} ({seeds:3} seeds)   {1e6 / rate:8.1f} us of a processor a seed-step")
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
