"""The GPU path at TinyLlama's shape, with random weights: is it right, and how fast?

python benchmarks/gpu.py [--only bandwidth,generation,agents,agreement,iteration,resume] [--json FILE]

Generation is compared with the time that the card needs to read the weights once per token and the cache once per
token, at the bandwidth measured in the same run. `iteration` needs TRL's peers as dialogue.py does.
"""

import filecmp
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
import dialogue

from rlhf_marl.config import Config, check_config
from rlhf_marl.policy.generation import generate
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.training.build import build_agents

PARTS = ("bandwidth", "generation", "agents", "agreement", "iteration", "resume")
GOALS = {  # name: (bound, whether the number should be below it)
    "generation_over_streaming": (1.5, True),
    "eight_agents_over_one": (1.3, True),
    "iteration_speedup_over_trl": (3.0, False),
}
TINYLLAMA = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
SMALL = TINYLLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTION = "What would you tell a friend who wants to learn to cook, has little time, and does not like to plan ahead?"


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [len(text) / 100 for text in responses]


def model_folder(folder: Path, shape: dict[str, int]) -> Path:
    """A chat model of this shape with random weights, whose tokenizer has a token per byte and thousands of words."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    alphabet = ["<pad>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [f"w{i}" for i in range(shape["vocab_size"] - len(alphabet))]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, *words])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(alphabet[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=alphabet[2], pad_token=alphabet[0])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def config_for(folder: Path, agents: int, dialogues: int, new_tokens: int, prompt: int) -> Config:
    """A config of agents on the model in the folder, with a scripted controller."""
    card = folder / "length.yaml"
    card.write_text(
        "name: length\ndescription: for timing\nkind: callable\nlicence: none\nscale: 1.0\noffset: 0.0\n"
        "function: gpu:length\n"
    )
    content = {
        "iterations": 2,
        "dialogues": dialogues,
        "turns": 1,
        "model": {"name": str(folder)},
        "agents": [{"reward_model": str(card)}] * agents,
        "generation": {"max_new_tokens": new_tokens, "max_prompt_tokens": prompt},
        "prompts": {"source": "fixed", "question": QUESTION},
        "controller": {"kind": "scripted", "next_prompts": ["And then?"]},
        "critic": {"width": 256, "depth": 3, "output_scale": 0.01, "step_size": 0.001},
        "topology": {"graph": "complete"} if agents > 1 else {},
        "actor": {"step_size": 1e-4},
        "checkpoint_every": 1,
    }
    return check_config(content, "benchmark")


def in_turn(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, measured in turn."""
    times = dialogue.in_turn(ways, repeats, torch.device("cuda"))
    return {name: statistics.median(values) for name, values in times.items()}


def bandwidth() -> float:
    """Bytes per second that the card reads: the better of a sum and a copy of 4 GB, counting a copy's two passes."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    times = in_turn({"copy": lambda: target.copy_(source), "sum": lambda: source.sum()}, 20)
    return max(2 * source.nbytes / times["copy"], source.nbytes / times["sum"])


class Shape:
    """Agents of one config, their prompts, and ways to generate."""

    def __init__(self, folder: Path, agents: int, dialogues: int, new_tokens: int, prompt: int) -> None:
        self.config = config_for(folder, agents, dialogues, new_tokens, prompt)
        self.agents = build_agents(self.config, "benchmark", torch.device("cuda"))
        self.adapters, self.model = self.agents.adapters, self.agents.chat_model.model
        torch.manual_seed(1)
        self.adapters.parameters.data += 0.01 * torch.randn_like(self.adapters.parameters)
        self.prompts = torch.randint(300, 32000, (dialogues, prompt)).tolist()
        self.new_tokens, self.rows = new_tokens, agents * dialogues
        self.options = {
            "max_new_tokens": new_tokens,
            "stop_tokens": [0],
            "uniforms": dialogue.uniforms_for(self.rows, new_tokens).cuda(),
        }
        self.decoder = self.agents.sampler._decoder  # the one that training uses

    def ours(self):
        with self.adapters.use(slice(None)):
            return self.decoder.generate(self.prompts * self.adapters.n_agents, agents=slice(None), **self.options)

    def tree(self):
        with self.adapters.use(slice(None)):
            return generate(
                self.model, self.prompts * self.adapters.n_agents, n_policies=self.adapters.n_agents, **self.options
            )

    def prompts_alone(self):
        with self.adapters.use(slice(None)):
            options = self.options | {"max_new_tokens": 1, "uniforms": self.options["uniforms"][:, :1]}
            return self.decoder.generate(self.prompts * self.adapters.n_agents, agents=slice(None), **options)

    def streaming(self, speed: float) -> float:
        """Seconds to read the weights, and each row's cache, once per new token."""
        config = self.model.config
        embeddings = self.model.get_input_embeddings().weight.nbytes
        weights = sum(p.nbytes for p in self.model.parameters()) - embeddings
        weights += self.adapters.parameters.nbytes // 2  # in half precision
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
        cached = sum(self.rows * per_token * (len(self.prompts[0]) + step) for step in range(self.new_tokens))
        return (self.new_tokens * weights + cached) / speed


def measure_generation(shape: Shape, speed: float, profile: bool) -> dict[str, float]:
    times = in_turn({"ours": shape.ours, "one token": shape.prompts_alone}, 5)
    tree = dialogue.seconds(shape.tree, torch.device("cuda"))
    floor = shape.streaming(speed)
    step = (times["ours"] - times["one token"]) / (shape.new_tokens - 1)
    click.echo(f"\nGeneration of {shape.rows} rows, {len(shape.prompts[0])} + {shape.new_tokens} tokens")
    click.echo(f"  streaming weights and cache at {speed / 1e12:.2f} TB/s  {floor:.3f} s")
    click.echo(f"  ours {times['ours']:.3f} s (prompts {times['one token']:.3f} s, then {step * 1e3:.2f} ms per token)")
    click.echo(f"  the module tree, step by step {tree:.3f} s")
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            shape.ours()
        click.echo(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60))
    return {
        "generation_seconds": times["ours"],
        "generation_over_streaming": times["ours"] / floor,
        "decode_over_streaming": step * shape.new_tokens / floor,
        "generation_speedup_over_module_tree": tree / times["ours"],
    }


def measure_agreement(shape: Shape) -> dict[str, float]:
    """How far the log-probabilities of sampling are from those that the update computes, per token."""
    numbers = {}
    pad, n = 0, shape.adapters.n_agents
    click.echo("\nLog-probabilities of sampling against those of the update")
    for name, rows in (("ours", shape.ours()), ("module tree", shape.tree())):
        per_agent = [rows[i : i + len(shape.prompts)] for i in range(0, len(rows), len(shape.prompts))]
        tokens = [[ids for ids, _ in agent] for agent in per_agent]
        old = [[logs for _, logs in agent] for agent in per_agent]
        of_update = evaluate_responses(
            shape.model,
            shape.adapters,
            [shape.prompts] * n,
            tokens,
            temperature=1.0,
            pad=pad,
            old_log_probabilities=old,
        )
        sampled = torch.tensor([[sum(logs) for logs in agent] for agent in old], device="cuda")
        error = (of_update.log_probability - sampled) / shape.new_tokens
        weight = of_update.importance_weight
        ess = float((weight.sum() ** 2 / (weight**2).sum() / weight.numel()).cpu())
        click.echo(f"  {name:12} mean |error| of a response per token {error.abs().mean():.2e} nats, ESS {ess:.3f}")
        numbers[f"log_probability_error_{name.replace(' ', '_')}"] = float(error.abs().mean())
    assert n == len(tokens)
    return numbers


def measure_resume(folder: Path) -> dict[str, float]:
    """Four iterations at once, and two resumed for two more: are the files the same?"""
    config = config_for(folder, 3, 4, 24, 160).model_dump(mode="json", exclude_none=True) | {"turns": 2}
    path = folder / "resume.json"
    path.write_text(json.dumps(config | {"iterations": 4}))  # JSON is YAML
    runs = [folder / "whole", folder / "again", folder / "resumed"]
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from rlhf_marl.cli import main; main()",
    ]
    command += [str(Path(__file__).parent), "train", str(path)]
    for run, more in ((0, []), (1, []), (2, ["--iterations", "2"]), (2, ["--resume"])):
        train = [*command, "--run-dir", str(runs[run]), *more]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    numbers = {}
    click.echo("\nThe same run again, and interrupted after two of four iterations")
    for name, run in zip(("repeat", "resume"), runs[1:], strict=True):
        for file in ("dialogues.jsonl", "critics.safetensors", "adapters/agent_0/adapter_model.safetensors"):
            same = (run / file).exists() and filecmp.cmp(runs[0] / file, run / file, shallow=False)
            click.echo(f"  {name}: {file} {'equal' if same else 'differs'}")
            numbers[f"{name}_{file.split('.')[0].split('/')[0]}_equal"] = float(same)
    return numbers


@click.command()
@click.option("--only", default=",".join(PARTS), show_default=True, help="Parts to measure.")
@click.option("--agents", default=3, show_default=True)
@click.option("--dialogues", default=32, show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--prompt", default=160, show_default=True, help="Tokens of a prompt.")
@click.option("--profile", is_flag=True, help="Print the kernels of a generation.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers as a flat JSON object.")
def main(
    only: str, agents: int, dialogues: int, new_tokens: int, prompt: int, profile: bool, output: Path | None
) -> None:
    """Measure this machine's GPU."""
    parts = only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise click.UsageError(f"--only: {sorted(unknown)[0]!r} is no part; choose from {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")  # the peers' own
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    numbers: dict[str, float] = {}

    def keep(more: dict[str, float]) -> None:
        numbers.update(more)
        if output is not None:  # at once, so that nothing measured is lost
            output.write_text(json.dumps(numbers, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = model_folder(Path(temporary) / "tinyllama", TINYLLAMA)
        speed = bandwidth()
        keep({"terabytes_per_second": speed / 1e12})
        if {"generation", "agreement"} & set(parts):
            shape = Shape(folder, agents, dialogues, new_tokens, prompt)
            if "generation" in parts:
                keep(measure_generation(shape, speed, profile))
            if "agreement" in parts:
                keep(measure_agreement(shape))
            del shape
        if "agents" in parts:
            rows = 8 * (agents * dialogues // 8)
            eight, one = (Shape(folder, n, rows // n, new_tokens, prompt) for n in (8, 1))
            times = in_turn({"eight": eight.ours, "one": one.ours}, 5)
            click.echo(f"\n8 agents x {rows // 8}: {times['eight']:.3f} s; one agent x {rows}: {times['one']:.3f} s")
            keep({"eight_agents_over_one": times["eight"] / times["one"]})
            del eight, one
        if "iteration" in parts:
            experiment = dialogue.prepared(config_for(folder, agents, dialogues, new_tokens, prompt))
            keep(dialogue.measure_iteration(experiment, 1))
        if "resume" in parts:
            keep(measure_resume(model_folder(Path(temporary) / "small", SMALL)))
    dialogue.verdicts(numbers, GOALS)


if __name__ == "__main__":
    main()
