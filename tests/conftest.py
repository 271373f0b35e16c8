"""Shared fakes: a tiny random Llama with a byte-level tokenizer and a chat template."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests run side by side (make test), each on one thread; commands they start must not compile torch's sources anew.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_marl.api import train
from rlhf_marl.cli import main
from rlhf_marl.config import Config, check_config
from rlhf_marl.evaluation.loaded_run import LoadedRun, load_run
from rlhf_marl.evaluation.trained_run import open_run, reward_cards
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.sampler import TransformersSampler

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<|im_start|>", "<|im_end|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,  # logits far enough apart that sampled tokens do not hang on rounding
}


def tiny_llama(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=layers)).eval()


def tiny_sampler() -> TransformersSampler:
    return TransformersSampler(ChatModel(tiny_llama(), tiny_tokenizer(), [2]))


def tiny_mistral() -> MistralForCausalLM:
    """A model whose layers see no further than four tokens."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**TINY, num_hidden_layers=2, sliding_window=4)).eval()


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny chat model, loadable like any local folder."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


# Reward functions that cards in tests point to.
def count_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    return [sum(c in "aeiou" for c in text) / 4 for text in responses]


def few_vowels(prompts: list[str], responses: list[str]) -> list[float]:
    return [-score for score in count_vowels(prompts, responses)]


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(text)) for text in responses]


def write_card(folder: Path, name: str, function: str) -> Path:
    card = folder / f"{name}.yaml"
    card.write_text(
        f"name: {name}\ndescription: for tests\nkind: callable\nlicence: none\nscale: 1.0\noffset: 0.0\n"
        f"function: {function}\n"
    )
    return card


@pytest.fixture
def tiny_content(tiny_model_folder: Path, tmp_path: Path) -> dict:
    """Plain data of a config that trains the tiny model for two iterations in about a second."""
    vowels = write_card(tmp_path, "vowels", "tests.conftest:count_vowels")
    long = write_card(tmp_path, "length", "tests.conftest:length")
    return {
        "iterations": 2,
        "dialogues": 2,
        "turns": 2,
        "model": {"name": str(tiny_model_folder), "dtype": "float32"},  # on a GPU too
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [{"reward_model": str(vowels)}, {"reward_model": str(long)}],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 64},
        "prompts": {"source": "fixed", "question": "hi?"},
        "controller": {"kind": "shared", "aggregate_tokens": 5, "next_prompt_tokens": 5},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001},
        "actor": {"step_size": 0.001},
        "checkpoint_every": 1,
    }


@pytest.fixture
def quick_content(tiny_content: dict) -> dict:
    """Two iterations in a tenth of a second."""
    return tiny_content | {
        "turns": 1,
        "generation": {"max_new_tokens": 3, "max_prompt_tokens": 64},
        "controller": {"kind": "scripted", "next_prompts": ["-"]},
    }


@pytest.fixture
def tiny_config(tiny_content: dict) -> Config:
    return check_config(tiny_content, "tiny.yaml")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A finished run of two agents, the second of which has a role; far from the base model."""
    folder = tmp_path_factory.mktemp("served")
    vowels = write_card(folder, "vowels", "tests.conftest:count_vowels")
    long = write_card(folder, "length", "tests.conftest:length")
    config = {
        "iterations": 1,
        "dialogues": 2,
        "turns": 1,
        "model": {"name": str(tiny_model_folder), "dtype": "float32"},
        "lora": {"rank": 2},
        "agents": [{"reward_model": str(vowels)}, {"reward_model": str(long), "system": "Be brief."}],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 64},
        "prompts": {"question": "hi?"},
        "controller": {"aggregate_tokens": 5, "next_prompt_tokens": 5},
        "critic": {"width": 16, "depth": 2, "token_features": 4},
    }
    path = train(config, run_dir=folder / "run").path
    shutil.rmtree(path / "checkpoints")
    for file in path.glob("adapters/*/adapter_model.safetensors"):
        moved = {name: weights + 0.2 * torch.randn_like(weights) for name, weights in load_file(file).items()}
        save_file(moved, file, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="session")
def loaded_run(tiny_run: Path) -> LoadedRun:
    """The models of `tiny_run`."""
    run, config = open_run(tiny_run, "test")
    notes: list[str] = []
    return load_run(run, config, reward_cards(run, config, notes), "last", notes)


Answer = tuple[int, str, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable[..., Answer]:
    """Run the command in tmp_path: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["rlhf-marl", *arguments])
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call
