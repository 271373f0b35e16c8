import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.loading import load_model_of, load_tokenizer


def load(reference, **options):
    return load_model_of(AutoModelForCausalLM, reference, "c.yaml: model.name", dtype=torch.float32, **options)


def refused(reference, message, **options):
    with pytest.raises(UsageError, match=message) as caught:
        load(reference, **options)
    assert str(caught.value).startswith("c.yaml: model.name: ")
    assert "\n" not in str(caught.value)


def test_a_local_folder_loads(tiny_model_folder):
    model = load(str(tiny_model_folder))
    assert not model.training
    assert load_tokenizer(str(tiny_model_folder), "x").eos_token_id == 2


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
    refused("not a name", "is neither a folder nor a hub id")


def test_remote_code_needs_a_pinned_revision(tiny_model_folder):
    refused(str(tiny_model_folder), "trust_remote_code needs a pinned revision", trust_remote_code=True)
    refused(str(tiny_model_folder), "trust_remote_code needs", trust_remote_code=True, revision="main")
    assert load(str(tiny_model_folder), trust_remote_code=True, revision="a" * 40)


def test_code_of_another_repository_is_pinned_too(tiny_model_folder):
    """A config can name code in another repository: the given revision is requested, never main."""
    asked = []

    class Factory:
        @staticmethod
        def from_pretrained(source, **options):
            asked.append(options)
            return AutoModelForCausalLM.from_pretrained(source, output_loading_info=True)

    load_model_of(Factory, str(tiny_model_folder), "x", trust_remote_code=True, revision="a" * 40)
    load_model_of(Factory, str(tiny_model_folder), "x")
    assert [options.get("code_revision") for options in asked] == ["a" * 40, None]


def test_pickle_is_never_read(tmp_path, tiny_model_folder):
    """A folder with safetensors and a hostile pickle loads only the safetensors."""
    AutoModelForCausalLM.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert load(str(tmp_path))
    assert "pytorch_model" not in sys.modules
