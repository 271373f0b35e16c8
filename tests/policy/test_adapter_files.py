"""Adapters as PEFT saves them: the table of docs/compatibility.md, row by row, with PEFT's own logits as reference."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapter_files import shortest_names
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.references import resolve_adapter
from tests.conftest import tiny_llama
from tests.tables import table

ROWS = torch.randint(0, 259, (2, 9), generator=torch.Generator().manual_seed(3))
FIELDS = table("LoRA adapters")
EXACT = [(field, json.loads(value)) for field, value, result in FIELDS if result.startswith("exact")]
REFUSED = [(field, json.loads(value)) for field, value, result in FIELDS if result == "refused"]
CONFIGURED = [(field, json.loads(value)) for field, value, result in FIELDS if "else refused" in result]
# What PEFT does not build, or not without more libraries and data: only written into the saved config.
WRITTEN = {"base_model_name_or_path", "peft_type", "auto_mapping", "megatron_core", "eva_config", "runtime_config"}


def named(case: tuple) -> str:
    return "-".join(re.sub(r"\W+", "_", str(part)) for part in case)


def saved(folder: Path, **fields) -> list[str]:
    """An adapter that PEFT saves, with random weights; returns the layers that PEFT adapts."""
    if "layers_pattern" in fields:
        fields["layers_to_transform"] = [0, 1]
    settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "target_modules": "all-linear"}
    if fields.keys() & {"layers_to_transform"}:
        settings["target_modules"] = ["q_proj", "up_proj"]
    built = {name: value for name, value in fields.items() if name not in WRITTEN}
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), LoraConfig(**(settings | built)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    change(folder, **fields)
    return [
        name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")
    ]


def change(folder: Path, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def ours(folder: Path, **options) -> torch.Tensor:
    """Logits with the adapter loaded here."""
    model = tiny_llama()
    settings = {"rank": 2, "alpha": 6.0, "targets": "all-linear", "where": "c.yaml"} | options
    adapters = StackedAdapters(model, [1], **settings)
    adapters.load(0, folder, "c.yaml: agents.0.adapter", base=["org/base"])
    with torch.inference_mode(), adapters.use(slice(0, 1)):
        return model(ROWS).logits


@pytest.mark.filterwarnings("ignore")  # PEFT's
@pytest.mark.parametrize(("field", "value"), EXACT, ids=map(named, EXACT))
def test_fields_that_are_honoured_give_pefts_logits(tmp_path, field, value):
    layers = saved(tmp_path, **{field: value})
    options = {"r": {"rank": value}, "lora_alpha": {"alpha": value}, "use_rslora": {"use_rslora": value}}
    found = ours(tmp_path, targets=layers, **options.get(field, {}))
    base = tiny_llama()
    with torch.inference_mode():
        plain = base(ROWS).logits
        expected = PeftModel.from_pretrained(base, str(tmp_path)).eval()(ROWS).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("field", "value"), CONFIGURED, ids=map(named, CONFIGURED))
def test_fields_that_the_config_must_ask_for_are_refused_otherwise(tmp_path, field, value):
    saved(tmp_path, **{field: value})
    reason = {"r": "r: 4 given; lora.rank is 2", "lora_alpha": "lora_alpha: 3 given; lora.alpha is 6.0"}
    reason["use_rslora"] = "use_rslora: True given; lora.use_rslora is False"
    with pytest.raises(UsageError, match=reason.get(field, "adapts other layers than lora.targets asks for, such as")):
        ours(tmp_path)


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=map(named, REFUSED))
def test_other_fields_are_refused_by_name(tmp_path, field, value):
    saved(tmp_path)
    change(tmp_path, **{field: value})
    with pytest.raises(UsageError, match=rf"^c.yaml: agents.0.adapter: .*config.json': {field}: .* given; ") as caught:
        ours(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_table_has_every_field_of_pefts_config():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert {field for field, _, _ in FIELDS} == fields | {"a_field_of_tomorrow"}


def test_a_field_left_out_has_pefts_default(tmp_path):
    """r and lora_alpha are 8 if not given; layers cannot be left out."""
    saved(tmp_path, r=8, lora_alpha=8)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"peft_type": "LORA", "target_modules": content["target_modules"]}))
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()(ROWS).logits
    torch.testing.assert_close(ours(tmp_path, rank=8, alpha=8.0), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match=r"r: 8 given; lora.rank is 2"):
        ours(tmp_path, alpha=8.0)
    file.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6}))
    with pytest.raises(UsageError, match="target_modules: not given; name the layers"):
        ours(tmp_path)


def test_weights_for_layers_that_the_config_does_not_target_are_refused(tmp_path):
    """PEFT would leave such weights out."""
    saved(tmp_path)
    change(tmp_path, target_modules=["q_proj"])
    with pytest.raises(UsageError, match=r"adapts other layers than lora.targets asks for, such as model.layers.0.mlp"):
        ours(tmp_path)
    saved(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    extra = weights | {"base_model.model.lm_head.weight": torch.zeros(2)}
    save_file(extra, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"adapts other layers .* such as base_model.model.lm_head.weight"):
        ours(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"target_modules": "(", "exclude_modules": None}, "missing \\)"),
        ({"target_modules": 3}, "'int' object is not iterable|not iterable"),
        ({"target_modules": ".*", "layers_to_transform": [0]}, "cannot be used when `target_modules` is a str"),
    ],
)
def test_layers_that_peft_would_refuse_are_one_line(tmp_path, content, reason):
    saved(tmp_path)
    change(tmp_path, **content)
    with pytest.raises(UsageError, match=reason) as caught:
        ours(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "exclude", "n_layers"),
    [
        ("all-linear", None, 14),
        (["q_proj"], None, 2),
        (["layers.0.self_attn.q_proj", "v_proj"], None, 3),
        (r".*\.1\..*_proj", None, 7),
        ("all-linear", ["q_proj", "model.layers.0.mlp.up_proj"], 11),
        ("all-linear", r".*mlp.*", 8),
    ],
)
def test_targets_mean_what_they_mean_to_peft_and_are_saved_so(tmp_path, targets, exclude, n_layers):
    model = tiny_llama()
    adapters = StackedAdapters(model, [1], rank=2, alpha=6.0, targets=targets, exclude=exclude, where="c.yaml")
    adapters.parameters.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(7))
    adapters.save(0, tmp_path, "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, exclude_modules=exclude)
    fresh = get_peft_model(tiny_llama(), config)
    theirs = {name for name, _ in fresh.named_parameters() if "lora_" in name}
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(theirs) == 2 * n_layers
    assert {name.replace(".default", "") for name in theirs} == weights.keys()
    with torch.inference_mode(), adapters.use(slice(0, 1)):
        found = model(ROWS).logits
        expected = PeftModel.from_pretrained(tiny_llama(), str(tmp_path)).eval()(ROWS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    again = StackedAdapters(tiny_llama(), [2], rank=2, alpha=6.0, targets=targets, exclude=exclude, where="c.yaml")
    again.load(0, tmp_path, "c.yaml")
    assert torch.equal(again.parameters, adapters.parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_proj", "qq"]}, "lora.targets: 'qq' is not a linear layer; choose from down_proj, gate_proj"),
        ({"targets": "q_proj"}, r"lora.targets: 'q_proj' is not a linear layer \(a string is a regular expression"),
        ({"targets": "("}, r"lora.targets: .*missing \)"),
        (
            {"targets": ".*"},
            "lora.targets: .*, which it names too, is not a linear layer",
        ),
        ({"targets": ["mlp"]}, "lora.targets: 'mlp' is not a linear layer"),
        ({"targets": "all-linear", "exclude": ["qq"]}, "lora.exclude: 'qq' is not a linear layer"),
        ({"targets": ["q_proj"], "exclude": ["q_proj"]}, "lora.exclude: leaves no layer to adapt"),
    ],
)
def test_mistaken_targets_are_one_line(options, message):
    with pytest.raises(UsageError, match=f"^c.yaml: {message}"):
        StackedAdapters(tiny_llama(), [1], rank=2, alpha=6.0, where="c.yaml", **options)


def test_saved_names_are_short_only_where_they_name_nothing_else():
    names = ["a.q", "a.k", "b.q", "b.k"]
    assert shortest_names(["a.q", "b.q"], names) == ["q"]
    assert shortest_names(["a.q", "b.k"], names) == ["a.q", "b.k"]


def test_an_adapter_made_for_another_base_is_used_with_a_warning(tmp_path, caplog):
    saved(tmp_path / "a")
    warning = "c.yaml: agents.0.adapter: the adapter was made for org/other, not for org/base"
    for name, warned in (("org/base", False), (str(tmp_path / "base"), False), ("org/other", True), (None, False)):
        change(tmp_path / "a", base_model_name_or_path=name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rlhf_marl"):
            ours(tmp_path / "a")
        assert (warning in caplog.text) is warned


def test_folders_of_the_same_name_are_different_bases(tmp_path, caplog):
    for folder in ("one/model", "two/model"):
        (tmp_path / folder).mkdir(parents=True)
    saved(tmp_path / "a", base_model_name_or_path=str(tmp_path / "one/model"))
    adapters = StackedAdapters(tiny_llama(), [1], rank=2, alpha=6.0, targets="all-linear", where="c")
    adapters.load(0, tmp_path / "a", "c", base=[str(tmp_path / "one" / ".." / "one/model")])
    assert caplog.text == ""
    adapters.load(0, tmp_path / "a", "c", base=[str(tmp_path / "two/model")])
    assert "the adapter was made for" in caplog.text


def test_pickled_weights_are_refused(tmp_path):
    saved(tmp_path)
    shutil.move(tmp_path / "adapter_model.safetensors", tmp_path / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"adapter_model.safetensors is missing; pickle weights are refused"):
        ours(tmp_path)


def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path, monkeypatch):
    """Without a network; the cache's layout is the hub client's."""
    commit = "a" * 40
    repository = tmp_path / "models--org--adapter"
    saved(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for revision in (None, commit):
        assert resolve_adapter("org/adapter", "c", revision) == repository / "snapshots" / commit
    with pytest.raises(UsageError, match="c: 'org/adapter' cannot be reached on the hub and is not in its cache"):
        resolve_adapter("org/adapter", "c", "b" * 40)
    with pytest.raises(UsageError, match="c: 'org/gone' cannot be reached on the hub"):
        resolve_adapter("org/gone", "c")
