"""One Ray for all tests, and a model that computes in float64 throughout (a Llama's norms are always float32)."""

import time

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rlhf_marl.config.schema import RuntimeConfig
from rlhf_marl.distributed.cluster import connect
from tests.conftest import tiny_tokenizer, write_card


def first(prompts, responses):
    """Rewards that nearly always differ: a signal near zero would be rounding noise."""
    return [sum(text.encode()) % 17 / 8 for text in responses]


def second(prompts, responses):
    return [sum(text.encode()) % 23 / 8 for text in responses]


def silent(prompts, responses):
    time.sleep(3600)


def slow(prompts, responses):
    """Ten times as long as a turn of the others takes."""
    time.sleep(1.0)
    return second(prompts, responses)


@pytest.fixture(scope="session")
def cluster():
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[distributed]'")
    disconnect = connect(RuntimeConfig(kind="ray"), 4, "tests")
    yield
    disconnect()


@pytest.fixture(scope="session")
def content(tmp_path_factory):
    """Plain data of a config: three agents on a path, in float64; one of them has a role and is brief."""
    folder = tmp_path_factory.mktemp("ray")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    GPTNeoXForCausalLM(config).eval().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    first, second = (write_card(folder, name, f"tests.distributed.conftest:{name}") for name in ("first", "second"))
    return {
        "iterations": 5,
        "dialogues": 2,
        "turns": 2,
        "model": {"name": str(folder / "model"), "dtype": "float64"},
        "lora": {"rank": 2, "alpha": 4.0},
        "agents": [
            {"reward_model": str(first)},
            {"reward_model": str(second), "system": "You argue.", "generation": {"max_new_tokens": 5}},
            {"reward_model": str(first)},
        ],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 96},
        "prompts": {"question": "hi?"},
        "controller": {"kind": "scripted", "aggregate": "{{ responses | join(' ') }}", "next_prompts": ["go on"]},
        "topology": {"graph": "explicit", "edges": [[0, 1], [1, 2]], "gossip_rounds": 3},
        "critic": {"width": 16, "depth": 2, "token_features": 4, "step_size": 0.001},
        "actor": {"step_size": 0.001, "kl_coefficient": 0.01, "kl_target": 0.1, "entropy_band": [4.9, 4.95]},
        "checkpoint_every": 2,
        "runtime": {"kind": "ray"},
    }
