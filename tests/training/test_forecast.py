"""A run's costs from shapes: parameters against real ones, and (slow) the peak memory against measured peaks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.training.build import build
from rlhf_marl.training.check import check_experiment
from rlhf_marl.training.forecast import _saved
from tests.conftest import TINY, tiny_tokenizer

CPU = torch.device("cpu")


def test_counts_are_those_of_the_built_experiment(tiny_content, tiny_config):
    found = check_experiment(tiny_config, "tiny", CPU).forecast
    state = build(tiny_config, "tiny", CPU).team.state_dict()
    assert found.adapter == state["agent_0.adapter"].numel()
    assert found.critic == state["agent_0.critic.weights"].numel()
    assert found.base == 2 * 259 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    assert found.updates == 4
    assert (found.generated, found.read, found.controlled) == (2 * 2 * 6, 2 * 2 * 64, 2 * 10)
    assert found.memory["base model"] >= 4 * found.base
    assert found.unknown == []


def test_a_q_critic_reads_as_much_of_each_response_as_its_agent_may_write(tiny_content):
    """64 tokens of a state and 6 of each of two responses; then 16 instead of 6 of one. Rows of 4 by 16 numbers."""
    content = tiny_content | {"actor": {"signal": "td_q"}}
    critics = [
        check_experiment(check_config(changed, "tiny"), "tiny", CPU).forecast.memory["critics"]
        for changed in (
            content,
            content | {"agents": [content["agents"][0] | {"generation": {"max_new_tokens": 16}}, content["agents"][1]]},
        )
    ]
    assert critics[1] - critics[0] == 10 * 4 * 16 * 4


def test_agents_may_write_as_much_as_their_own_settings_allow(tiny_content):
    """Two dialogues, in which the first agent writes 16 tokens and the second, as the team's settings say, 6."""
    vowels, long = tiny_content["agents"]
    content = tiny_content | {"agents": [vowels | {"generation": {"max_new_tokens": 16}}, long]}
    assert check_experiment(check_config(content, "tiny"), "tiny", CPU).forecast.generated == 2 * 16 + 2 * 6


def test_agents_with_other_settings_sample_and_learn_in_batches_of_their_own(tiny_content):
    """A row's keys and values are two layers of 2 x 16 numbers a token; its prefill is 4 x 256 numbers a token."""
    vowels, long = tiny_content["agents"]
    wordy = vowels | {"generation": {"max_new_tokens": 16}}

    def activations(**changes):
        content = tiny_content | {"actor": {"tokens_per_pass": 1}} | changes  # the backward pass reads one row
        return check_experiment(check_config(content, "tiny"), "tiny", CPU).forecast.memory["activations"]

    eight_rows = 8 * 4 * (2 * 2 * 16 * (64 + 16) + 4 * 256 * 64)
    assert activations(agents=[wordy, long], dialogues=8) == eight_rows
    one_row = activations(agents=[wordy], dialogues=1)
    assert activations(agents=[long, wordy], dialogues=1) == one_row
    assert activations(agents=[long], dialogues=1) < one_row


def test_a_controllers_model_with_a_template_of_its_own(tiny_content, tiny_model_folder, tmp_path):
    """Its folder has no chat template; the config names one, as it may for training."""
    shutil.copytree(tiny_model_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("chat_template*"))
    (tmp_path / "chat.jinja").write_text(tiny_tokenizer().chat_template)
    model = {"name": str(tmp_path / "bare"), "chat_template": str(tmp_path / "chat.jinja")}
    content = tiny_content | {"controller": tiny_content["controller"] | {"kind": "transformers", "model": model}}
    memory = check_experiment(check_config(content, "tiny"), "tiny", CPU).forecast.memory
    assert memory["controller"] > 4 * 259 * 32
    del model["chat_template"]
    with pytest.raises(UsageError, match="no chat template"):
        check_experiment(check_config(content, "tiny"), "tiny", CPU)


def test_more_agents_need_more_and_a_gpu_needs_less_for_bfloat16(tiny_content):
    def peak(device, **changes):
        content = tiny_content | {"model": {"name": tiny_content["model"]["name"]}} | changes
        return check_experiment(check_config(content, "tiny"), "tiny", device).forecast.memory

    four = peak(CPU, agents=tiny_content["agents"] * 2)
    assert four["adapters"] == 2 * peak(CPU)["adapters"]
    gpu = peak(torch.device("cuda"))
    assert gpu["base model"] < peak(CPU)["base model"] / 2  # half as wide, and no packed copy
    assert "process" not in gpu


def test_a_model_that_cannot_run_without_values_is_estimated_from_its_widths(tiny_content, tmp_path):
    """Mixtral: per layer 32 + 32, twice 32 + 16, 32 + 32 of the attention, and for two experts 32 + 96, 48 + 32."""
    MixtralForCausalLM(MixtralConfig(**TINY, num_hidden_layers=2, num_local_experts=4)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    content = tiny_content | {"model": {"name": str(tmp_path), "dtype": "float32"}}
    checked = check_experiment(check_config(content, "tiny"), "tiny", CPU)
    assert _saved(checked.agents, 2, 3, 10, 4) == (2 * (224 + 2 * 208) * 3 * 10 * 4, 2 * 3 * 4 * 259 * 4)
    assert checked.forecast.memory["activations"] > 0


def test_no_weights_are_read(tiny_content, tiny_model_folder, tmp_path):
    """The same model with empty weight files."""
    for file in tiny_model_folder.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        content = b"" if file.suffix == ".safetensors" else file.read_bytes()
        (tmp_path / "model" / file.name).write_bytes(content)
    content = tiny_content | {"model": {"name": str(tmp_path / "model")}}
    assert check_experiment(check_config(content, "tiny"), "tiny", CPU).forecast.base > 0


SIZES = {
    "tiny": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 259},
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "vocab_size": 8192},
    "medium": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10, "vocab_size": 32000},
}
PEAK = (
    "import resource, sys\nfrom rlhf_marl.cli import main\nmain()\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_estimated_peak_is_within_a_fifth_of_the_measured_one(size, tiny_content, tmp_path):
    folder = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**(TINY | SIZES[size]))).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    content = tiny_content | {
        "iterations": 1,
        "dialogues": 4,
        "model": {"name": str(folder)},
        "lora": {"rank": 8},
        "agents": [{"reward_model": tiny_content["agents"][1]["reward_model"]} for _ in range(3)],
        "generation": {"max_new_tokens": 32, "max_prompt_tokens": 96},
        "prompts": {"question": "hi? " * 15},
        "controller": {"kind": "scripted", "next_prompts": ["go on " * 20]},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))

    def printed(*command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    estimated = json.loads(printed(sys.executable, "-m", "rlhf_marl", "check", "c.yaml", "--json"))["peak"]
    measured = int(printed(sys.executable, "-c", PEAK, "train", "c.yaml", "--run-dir", "run").splitlines()[-1])
    assert abs(estimated - measured) < 0.2 * measured
