"""Every causal class of transformers, with a tiny config: trained with the toolkit and compared with PEFT, or refused.

`python -m tests.policy.every_causal_class` tries all of them and writes the section of docs/compatibility.md, in a few
minutes; given model types, it prints what it finds of these.
"""

import logging
import sys
import tempfile
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

import rlhf_marl
from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.loading import load_chat_model
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.policy.model_checks import check_training
from rlhf_marl.policy.sampler import TransformersSampler
from rlhf_marl.training.check import check_experiment
from tests.conftest import tiny_tokenizer, write_card
from tests.policy.tiny_configs import tiny_config
from tests.tables import PAGE

CLASSES: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
HEADING = "Every causal class"
CPU = torch.device("cpu")
PROMPTS = ("hello there: what now?", "hello there: hi")
SIGNAL = torch.tensor([[1.0, -0.5], [0.3, 0.7]])
Row = tuple[str, str, str, str]


def row_of(model_type: str, folder: Path) -> Row:
    """The class's row of the table: model type, class, result, and the layers that all-linear adapts.

    Raises:
        AssertionError: it trains, but not as PEFT does.
    """
    model = folder / "model"
    _save(model_type, model)
    content = {
        "iterations": 1,
        "dialogues": 2,
        "turns": 1,
        "model": {"name": str(model), "dtype": "float32"},
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [{"reward_model": str(write_card(folder, "length", "tests.conftest:length"))}] * 2,
        "generation": {"max_new_tokens": 4, "max_prompt_tokens": 64},
        "prompts": {"source": "fixed", "question": "hi?"},
        "controller": {"kind": "scripted", "next_prompts": ["-"]},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001},
    }
    try:
        layers = _compare_with_peft(model, folder)
        check_experiment(check_config(content, "c"), "c", CPU)
        rlhf_marl.train(content, run_dir=folder / "run")
    except UsageError as error:
        message = str(error)
    else:
        return model_type, CLASSES[model_type], "works", ", ".join(layers)
    assert "\n" not in message
    return model_type, CLASSES[model_type], f"refused: {_reason(message.partition(repr(str(model)))[2])}", ""


def _reason(message: str) -> str:
    """A refusal without the class and what transformers said: ": a LlamaForCausalLM cannot x: y" is "cannot x"."""
    if message.startswith(": a "):
        message = message.removeprefix(": a ").partition(" ")[2]
    return message.strip().partition(": ")[0].partition("; ")[0]


def _save(model_type: str, folder: Path) -> None:
    """A random model whose layers all matter, and the tiny tokenizer."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
    tiny_tokenizer().save_pretrained(folder)
    try:
        model = AutoModelForCausalLM.from_config(config)
    except Exception:  # not even transformers makes one; users' files are refused when they are loaded
        config.save_pretrained(folder)
        save_file({}, folder / "model.safetensors")
        return
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and weight.is_floating_point():
                nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)


def _compare_with_peft(model: Path, folder: Path) -> list[str]:
    """Names of the adapted layers.

    Sampling, log-probabilities and their gradients, of two agents with different adapters and prompts of different
    lengths, are compared with PEFT's and autograd's, which read the saved adapters and each text alone.
    """
    chat = load_chat_model(str(model), "c: model.name", CPU, dtype="float32")
    adapters = StackedAdapters(chat.model, [1, 2], rank=2, alpha=4.0, targets="all-linear", where="c")
    check_training(chat.model, adapters, f"c: model.name: {str(model)!r}")
    adapters.parameters.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    prompts = [chat.tokenizer(text)["input_ids"] for text in PROMPTS]
    keys = [SamplingKey(0, agent, dialogue, 0) for agent in range(2) for dialogue in range(2)]
    sampler = TransformersSampler(chat, adapters)
    samples = sampler.sample(prompts * 2, keys, max_new_tokens=6, temperature=1.0, agents=slice(None))
    responses = [[sample.tokens for sample in samples[:2]], [sample.tokens for sample in samples[2:]]]
    found = evaluate_responses(
        chat.model, adapters, [prompts] * 2, responses, temperature=1.0, pad=0, signal=SIGNAL
    ).log_probability
    sampled = torch.tensor([sum(sample.log_probabilities) for sample in samples]).view(2, 2)
    torch.testing.assert_close(found, sampled, atol=1e-4, rtol=1e-4)
    for agent in range(2):
        adapters.save(agent, folder / f"agent_{agent}", str(model))
        expected, gradients = _of_peft(model, folder / f"agent_{agent}", prompts, responses[agent], SIGNAL[agent])
        torch.testing.assert_close(found[agent], expected, atol=1e-4, rtol=1e-4)
        ours = {
            f"base_model.model.{name}.lora_{part}.weight": values.grad[agent].T
            for name, layer in adapters._layers.items()
            for part, values in (("A", layer.a), ("B", layer.b))
        }
        torch.testing.assert_close(ours, gradients, atol=1e-3, rtol=1e-3)
    return sorted({name.rpartition(".")[2] for name in adapters._layers})


def _of_peft(
    model: Path, adapter: Path, prompts: list[list[int]], responses: list[list[int]], signal: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probability of each response, and the adapter's gradients of minus their sum weighted by the signal."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = adapted(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(response).unsqueeze(-1)).sum())
    log_probability = torch.stack(found)
    (-(signal * log_probability).sum()).backward()
    gradients = {
        name.replace(".default", ""): torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in adapted.named_parameters()
        if "lora_" in name
    }
    return log_probability.detach(), gradients


def quietly() -> None:
    """Silence what the models' own code says."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def summary(rows: list[Row]) -> str:
    """The sentence above the table."""
    works = sum(result == "works" for _, _, result, _ in rows)
    packages = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("transformers", "peft", "torch"))
    return (
        f"{date.today()}, with {packages}: {works} of {len(rows)} model types work, "
        f"{len(rows) - works} are refused in one line."
    )


def write_page(rows: list[Row]) -> None:
    """Replace the sentence and the table of the page."""
    before, heading, section = PAGE.read_text("utf-8").partition(f"## {HEADING}\n")
    introduction = section.partition("\n20")[0]
    lines = [
        "| model type | class | as base | what `all-linear` adapts |",
        "| --- | --- | --- | --- |",
        *(f"| `{name}` | `{of}` | {result} | {layers} |" for name, of, result, layers in rows),
    ]
    PAGE.write_text(f"{before}{heading}{introduction}\n{summary(rows)}\n\n" + "\n".join(lines) + "\n", "utf-8")


def main() -> None:
    quietly()
    rows = []
    for model_type in sys.argv[1:] or CLASSES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(model_type, Path(folder)))
        print(" | ".join(rows[-1]), flush=True)
    if not sys.argv[1:]:
        write_page(rows)


if __name__ == "__main__":
    main()
