"""What stacked adapters cost over their base model, and how much faster they are than what one would write otherwise.

python benchmarks/dialogue.py [CONFIG] [--json FILE] [--only decode,generation,backward,iteration,memory,growth]

Ways are measured in turn (A B C A B C ...) and compared by the median of the repeats' ratios. CoMLRL is an extra
(`pip install comlrl==1.4.3`).
"""

import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import peers

from rlhf_marl.config import Config, check_config, load_config
from rlhf_marl.dialogue.controller import Controller, ScriptedController
from rlhf_marl.dialogue.player import responses_of
from rlhf_marl.dialogue.speakers import decodings
from rlhf_marl.evaluation.questions import SHIPPED, load_questions
from rlhf_marl.files.locate import find_data
from rlhf_marl.perf.stopwatch import stopwatch
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.loading import default_device
from rlhf_marl.policy.log_probabilities import SharedPrefix, response_logits
from rlhf_marl.policy.prefix_cache import shared_tokens
from rlhf_marl.policy.sampler import TransformersSampler
from rlhf_marl.policy.straight_step import decode_step
from rlhf_marl.services.journal import UNRECORDED
from rlhf_marl.training.build import Experiment, build, build_reward_models
from rlhf_marl.training.loop import run_iteration

PARTS = ("decode", "generation", "backward", "iteration", "memory", "growth")
AGENTS = (1, 3, 8)
GOALS = {  # name: (bound, whether the number should be below it)
    "stacked_over_base_generation": (1.15, True),
    "stacked_over_base_backward": (1.25, True),
    "decode_over_floor": (2.0, True),
    "iteration_speedup_over_trl": (4.0, False),
    "iteration_speedup_over_comlrl": (4.0, False),
    "generation_speedup_over_peft_mixed": (1.8, False),
    "memory_8_over_1": (1.5, True),
}
Numbers = dict[str, float | None]
Way = Callable[[], Any]


def prepared(config: Config) -> Experiment:
    """The config's experiment, with adapters that do something and responses that all have their full length."""
    experiment = build(config, "benchmark", default_device())
    chat_model, adapters = experiment.team.learner.chat_model, experiment.team.learner.adapters
    adapters.parameters.data += 0.01 * torch.randn_like(adapters.parameters)
    respond = partial(
        responses_of,
        TransformersSampler(replace(chat_model, stop_tokens=[peers.NEVER]), adapters),
        seed=config.seed,
        decodings=decodings(config),
    )
    return replace(experiment, player=replace(experiment.player, respond=respond))


def prompts_of(experiment: Experiment, length: int, n: int) -> list[list[int]]:
    """n different chats of `length` tokens, from the held-out questions."""
    questions = load_questions(find_data(SHIPPED, "benchmark"))
    texts = [" ".join(q.prompt for q in questions[i : i + 40]) for i in range(n)]
    return [chat_tokens(experiment.player.tokenizer, [Message(role="user", content=text)], length) for text in texts]


def seconds(way: Way, device: torch.device) -> float:
    began = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def in_turn(ways: dict[str, Way], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, measured in turn."""
    return repeated({name: lambda way=way: seconds(way, device) for name, way in ways.items()}, repeats)


def repeated(steps: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each step returns, in turn. Before it counts a step runs once, as in a long run: else the memory that the
    one before gave back to the system, and that this one must ask for again, would be its cost."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()
            times[name].append(step())
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def show(title: str, times: dict[str, list[float]], first: str) -> None:
    click.echo(f"\n{title}")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[first], strict=True)]
        spread = f"{statistics.median(ratios):5.2f} x  ({min(ratios):.2f} to {max(ratios):.2f})"
        click.echo(f"  {name:34} {statistics.median(values):8.3f} s   {spread}")


def uniforms_for(rows: int, tokens: int) -> Tensor:
    return torch.rand(rows, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def ours(experiment: Experiment, prompts: list[list[int]], tokens: int, *, adapted: bool = True) -> Way:
    """Our generation of all agents' rows; not adapted, the same passes of the base model alone."""
    model, adapters = experiment.team.learner.chat_model.model, experiment.team.learner.adapters
    n, active = adapters.n_agents, slice(None) if adapted else None
    uniforms = uniforms_for(n * len(prompts), tokens)

    def way() -> None:
        with adapters.use(active):
            generate(
                model,
                prompts * n,
                max_new_tokens=tokens,
                stop_tokens=[peers.NEVER],
                uniforms=uniforms,
                n_policies=n,
                decode=decode_step(model, adapters, active),
            )

    return way


def measure_decode(experiment: Experiment, repeats: int) -> Numbers:
    """A decode step of all rows against the bare products of its matrices, and against reading them once."""
    model, config = experiment.team.learner.chat_model.model, experiment.config
    rows = len(config.agents) * config.dialogues
    prompts = prompts_of(experiment, config.generation.max_prompt_tokens, config.dialogues)
    head = model.get_output_embeddings()
    layers = [m.base for m in model.modules() if hasattr(m, "base") and isinstance(m.base, nn.Linear)]
    layers = layers or [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    inputs = {layer.in_features: torch.randn(rows, layer.in_features).to(layer.weight) for layer in [*layers, head]}

    @torch.inference_mode()
    def plain() -> None:
        for layer in [*layers, head]:
            nn.functional.linear(inputs[layer.in_features], layer.weight)

    @torch.inference_mode()
    def packed() -> None:
        for layer in [*layers, head]:
            layer(inputs[layer.in_features])

    @torch.inference_mode()
    def stream() -> None:
        for layer in [*layers, head]:
            layer.weight.sum()

    steps = 17
    times = in_turn(
        {
            "one token": ours(experiment, prompts, 1),
            f"{steps} tokens": ours(experiment, prompts, steps),
            "bare products, plain": plain,
            "bare products, packed": packed,
            "weights read once": stream,
        },
        repeats,
        model.device,
    )
    pairs = zip(times.pop(f"{steps} tokens"), times.pop("one token"), strict=True)
    step = {"decode step": [(long - short) / (steps - 1) for long, short in pairs], **times}
    show(f"Decode step of {rows} rows", step, "bare products, plain")
    return {
        "decode_over_floor": ratio(step, "decode step", "bare products, plain"),
        "decode_over_packed_floor": ratio(step, "decode step", "bare products, packed"),
        "decode_over_stream": ratio(step, "decode step", "weights read once"),
    }


def measure_generation(experiment: Experiment, repeats: int) -> Numbers:
    """Ours, the bare base model, and PEFT in three ways."""
    adapters, config = experiment.team.learner.adapters, experiment.config
    n, tokens = adapters.n_agents, config.generation.max_new_tokens
    prompts = prompts_of(experiment, config.generation.max_prompt_tokens, config.dialogues)
    names = [f"agent_{agent}" for agent in range(n) for _ in prompts]
    peft = peers.one_model(config, adapters).eval()
    separate = [copy.eval() for copy in peers.copies(config, adapters)]

    def one_by_one() -> None:
        for agent in range(n):
            peft.set_adapter(f"agent_{agent}")
            peers.generate(peft, prompts, tokens)

    times = in_turn(
        {
            "ours": ours(experiment, prompts, tokens),
            "ours, base model alone": ours(experiment, prompts, tokens, adapted=False),
            "PEFT, mixed batch": lambda: peers.generate(peft, prompts * n, tokens, names),
            "PEFT, one adapter after another": one_by_one,
            "PEFT, three model copies": lambda: [peers.generate(model, prompts, tokens) for model in separate],
        },
        repeats,
        adapters.parameters.device,
    )
    show(f"Generation of {n} x {len(prompts)} rows, {tokens} tokens", times, "ours")
    return {
        "stacked_over_base_generation": ratio(times, "ours", "ours, base model alone"),
        "generation_speedup_over_peft_mixed": ratio(times, "PEFT, mixed batch", "ours"),
        "generation_speedup_over_peft_sequential": ratio(times, "PEFT, one adapter after another", "ours"),
        "generation_speedup_over_three_copies": ratio(times, "PEFT, three model copies", "ours"),
    }


def measure_backward(experiment: Experiment, repeats: int) -> Numbers:
    """Log-probabilities of all rows and the gradient of their weighted sum, as the update computes them."""
    model, adapters = experiment.team.learner.chat_model.model, experiment.team.learner.adapters
    config, n, generation = experiment.config, adapters.n_agents, experiment.config.generation
    prompts = prompts_of(experiment, generation.max_prompt_tokens, config.dialogues)
    generator = torch.Generator().manual_seed(0)
    shape = (n, len(prompts), generation.max_new_tokens)
    tokens = torch.randint(1, model.config.vocab_size, shape, generator=generator).to(model.device)
    weights = torch.randn(n, len(prompts), generator=generator).to(model.device)
    names = [f"agent_{agent}" for agent in range(n) for _ in prompts]
    peft = peers.one_model(config, adapters).eval()
    separate = [copy.eval() for copy in peers.copies(config, adapters)]

    flat, weight = tokens.flatten(0, 1), weights.reshape(-1, 1, 1)
    mask = torch.ones_like(flat)

    def stacked(agents: slice | None) -> None:
        with adapters.use(agents):
            shared = shared_tokens(model, [prompts])
            beginning = SharedPrefix(model, [prompts[0][:shared]] * n)
            logits = response_logits(model, beginning, [prompts] * n, flat, mask, peers.NEVER)
        gradient = torch.softmax(logits.detach().float(), -1).mul_(-weight)  # of the weighted sum, at the logits
        gradient.scatter_add_(-1, flat.unsqueeze(-1), weight.expand(-1, flat.shape[1], 1))
        adapters.backward(logits, gradient.to(logits.dtype))
        beginning.backward()

    def base_alone() -> None:
        with gradient_of_embeddings(model):
            stacked(None)

    def one_by_one() -> None:
        for agent in range(n):
            peft.set_adapter(f"agent_{agent}")
            peers.backward(peft, prompts, tokens[agent].tolist(), weights[agent])

    times = in_turn(
        {
            "ours": lambda: stacked(slice(None)),
            "ours, base model alone": base_alone,
            "PEFT, mixed batch": lambda: peers.backward(peft, prompts * n, flat.tolist(), weights.flatten(), names),
            "PEFT, one adapter after another": one_by_one,
            "PEFT, three model copies": lambda: [
                peers.backward(copy, prompts, tokens[agent].tolist(), weights[agent])
                for agent, copy in enumerate(separate)
            ],
        },
        repeats,
        model.device,
    )
    show(f"Log-probabilities and backward of {n} x {len(prompts)} rows", times, "ours")
    return {
        "stacked_over_base_backward": ratio(times, "ours", "ours, base model alone"),
        "backward_speedup_over_peft_mixed": ratio(times, "PEFT, mixed batch", "ours"),
        "backward_speedup_over_peft_sequential": ratio(times, "PEFT, one adapter after another", "ours"),
        "backward_speedup_over_three_copies": ratio(times, "PEFT, three model copies", "ours"),
    }


@contextmanager
def gradient_of_embeddings(model: nn.Module) -> Iterator[None]:
    """Inside, the base model alone has something to differentiate: its input embeddings' outputs."""
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: output.requires_grad_())
    try:
        yield
    finally:
        handle.remove()


def measure_iteration(experiment: Experiment, repeats: int) -> Numbers:
    """One update of all agents from one turn of their dialogues, against the same by three TRL runs and by CoMLRL.

    All answer the config's question. Ours includes the controller, the critics and gossip, which the others have not;
    TRL and CoMLRL include their reference models' log-probabilities, as ours does. TRL is measured as it comes, which
    is with gradient checkpointing, and without; CoMLRL has no such option. Beside it stand ours without a controller
    model, which is the peers' own task, and a turn of longer dialogues, whose later states are longer and differ.
    """
    device, player = experiment.team.learner.adapters.parameters.device, experiment.player
    iteration = 0

    first_answer = ScriptedController("{{ responses[0] }}", [experiment.questions.texts[0]])

    def whole(turns: int, controller: Controller = player.controller) -> float:
        nonlocal iteration
        iteration += 1
        config = experiment.config.model_copy(update={"turns": turns})
        played = replace(experiment, config=config, player=replace(player, controller=controller))
        with stopwatch(device) as watch:
            return seconds(lambda: run_iteration(played, iteration, iteration, watch), device) / turns

    steps: dict[str, Callable[[], float]] = {
        "ours": lambda: whole(1),
        "ours, without a controller model": lambda: whole(1, first_answer),
        "ours, a turn of three": lambda: whole(3),
    }
    with peers_elsewhere(experiment.config) as theirs:
        times = repeated(steps | theirs, repeats)
    show("Update of all agents from one turn", times, "ours")
    comlrl = "CoMLRL MAREINFORCE" in times
    return {
        "iteration_speedup_over_trl": ratio(times, "three TRL RLOO runs", "ours"),
        "iteration_speedup_over_trl_without_checkpointing": ratio(times, "the same, no checkpointing", "ours"),
        "iteration_without_controller_speedup_over_trl": ratio(
            times, "three TRL RLOO runs", "ours, without a controller model"
        ),
        "turn_of_three_speedup_over_trl": ratio(times, "three TRL RLOO runs", "ours, a turn of three"),
        "iteration_speedup_over_comlrl": ratio(times, "CoMLRL MAREINFORCE", "ours") if comlrl else None,
    }


@contextmanager
def peers_elsewhere(config: Config) -> Iterator[dict[str, Callable[[], float]]]:
    """A step of each peer, in a process of its own: ours changes how its process gets memory (perf/memory.py)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_peers, args=(theirs, config), daemon=True)
    process.start()
    theirs.close()

    def step(name: str) -> float:
        ours.send(name)
        return ours.recv()

    try:
        yield {name: partial(step, name) for name in ours.recv()}
    finally:
        ours.close()
        process.join()


def serve_peers(connection: Connection, config: Config) -> None:
    """Send the names of the peers; then, for each name that comes, run its step and send the seconds."""
    warnings.filterwarnings("ignore")
    with unittest.mock.patch("rlhf_marl.training.build.keep_freed_memory"):
        experiment = prepared(config)
    question, learner = experiment.questions.texts[0], experiment.team.learner
    sampler = TransformersSampler(learner.chat_model, learner.adapters)
    reward_models = build_reward_models(experiment.cards, sampler, UNRECORDED)

    def trl(*, checkpointing: bool) -> Callable[[], float]:
        pairs = zip(peers.copies(config, learner.adapters), reward_models, strict=True)
        runs = [peers.trl_step(*pair, experiment, question, checkpointing=checkpointing) for pair in pairs]
        return lambda: sum(run() for run in runs)

    steps = {
        "three TRL RLOO runs": trl(checkpointing=True),
        "the same, no checkpointing": trl(checkpointing=False),
    }
    try:
        steps["CoMLRL MAREINFORCE"] = peers.comlrl_step(
            peers.copies(config, learner.adapters), reward_models, experiment, question
        )
    except ImportError as error:
        click.echo(f"\nCoMLRL is left out: {error}")
    connection.send(list(steps))
    with suppress(EOFError):
        while True:
            connection.send(steps[connection.recv()]())


def measure_growth(config: Config, repeats: int) -> Numbers:
    """Generation of one and of eight agents, of more dialogues, longer prompts and longer responses."""
    numbers: Numbers = {}
    click.echo("\nGrowth of generation: seconds, and against 3 agents x 4 dialogues, prompts of 48, 16 new tokens")
    shapes = [(3, 4, 48, 16), (1, 4, 48, 16), (8, 4, 48, 16), (3, 16, 48, 16), (3, 4, 192, 16), (3, 4, 48, 64)]
    experiments = {n: prepared(with_agents(config, n)) for n in {shape[0] for shape in shapes}}
    ways = {
        shape: ours(experiments[shape[0]], prompts_of(experiments[shape[0]], shape[2], shape[1]), shape[3])
        for shape in shapes
    }
    times = in_turn({str(shape): way for shape, way in ways.items()}, repeats, default_device())
    for shape in shapes:
        growth = ratio(times, str(shape), str(shapes[0]))
        click.echo("  {} agents x {:2} dialogues, {:3} + {:2} tokens".format(*shape) + f"   {growth:5.2f} x")
        numbers["growth_{}_agents_{}_dialogues_{}_prompt_{}_new".format(*shape)] = growth
    return numbers


def with_agents(config: Config, n: int) -> Config:
    """The config with n agents, all on its first reward model, on a complete graph."""
    content = config.model_dump()
    content["agents"] = content["agents"][:1] * n
    content["topology"] |= {"graph": "complete"}
    return check_config(content, "benchmark")


def peak_megabytes(config: Config, way: str, n: int) -> float:
    """For a process of its own: one turn of n agents, generated and learnt from."""
    config = with_agents(config, n)
    if way == "ours":
        experiment = build(config.model_copy(update={"turns": 1}), "benchmark", default_device())
        with stopwatch(default_device()) as watch:
            run_iteration(experiment, 0, 0, watch)
    else:
        tokens, rows = config.generation.max_new_tokens, config.dialogues
        prompts = [[1] * config.generation.max_prompt_tokens] * rows
        one = peers.fresh(config, n) if way == "adapters" else None
        models = [one] * n if one else [peers.fresh(config, 1) for _ in range(n)]
        for agent, model in enumerate(models):
            if one:
                one.set_adapter(f"agent_{agent}")
            responses = peers.generate(model, prompts, tokens)[:, -tokens:].tolist()
            peers.backward(model, prompts, responses, torch.ones(rows, device=model.device))
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # getrusage's peak includes the parent's, before exec
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(arguments: list[str]) -> Numbers:
    """Peak memory of one turn, generated and learnt from: ours with everything around it, PEFT with nothing."""
    click.echo("\nPeak memory of one turn, MB")
    numbers: Numbers = {}
    for way, title in (
        ("ours", "ours"),
        ("adapters", "PEFT, one adapter after another"),
        ("copies", "PEFT, model copies"),
    ):
        peaks = {}
        for n in AGENTS:
            child = [sys.executable, __file__, *arguments, "--peak", way, str(n)]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
            peaks[n] = float(done.stdout) if done.returncode == 0 else None
        shown = "  ".join(f"{n}: {peak:,.0f}" if peak else f"{n}: no room" for n, peak in peaks.items())
        click.echo(f"  {title:34} {shown}")
        prefix = "" if way == "ours" else f"{way}_"
        numbers |= {f"{prefix}megabytes_{n}": peaks[n] for n in AGENTS}
        numbers |= {
            f"{prefix}memory_{n}_over_1": peak / peaks[1] if peak and peaks[1] else None
            for n, peak in peaks.items()
            if n > 1
        }
    return numbers


def verdicts(numbers: Numbers, goals: dict[str, tuple[float, bool]] = GOALS) -> None:
    """Each goal beside what was measured."""
    click.echo("\nGoals")
    for name, (bound, below) in goals.items():
        value = numbers.get(name)
        if value is not None:
            met = value <= bound if below else value >= bound
            word = "at most" if below else "at least"
            click.echo(f"  {name:38} {value:6.2f}   {word} {bound}: {'met' if met else 'not met'}")


@click.command()
@click.argument("config", default="configs/quickstart.yaml")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts to measure.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--new-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--peak", type=(str, int), hidden=True)
def main(
    config: str, output: Path | None, only: str, repeats: int, new_tokens: int, peak: tuple[str, int] | None
) -> None:
    """Measure CONFIG's model and shapes."""
    parts = only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise click.UsageError(f"--only: {sorted(unknown)[0]!r} is no part; choose from {', '.join(PARTS)}")
    loaded = load_config(config, ["--generation.max_new_tokens", str(new_tokens)])
    warnings.filterwarnings("ignore")  # the peers' own
    if peak is not None:
        click.echo(peak_megabytes(loaded, *peak))
        return
    numbers: Numbers = {}
    if {"decode", "generation", "backward", "iteration"} & set(parts):
        experiment = prepared(loaded)
        for part, measure in (
            ("decode", measure_decode),
            ("generation", measure_generation),
            ("backward", measure_backward),
            ("iteration", measure_iteration),
        ):
            if part in parts:
                numbers |= measure(experiment, repeats)
        del experiment
    if "memory" in parts:
        numbers |= measure_memory([config, "--new-tokens", str(new_tokens)])
    if "growth" in parts:
        numbers |= measure_growth(loaded, repeats)
    verdicts(numbers)
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
