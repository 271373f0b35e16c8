"""LoRA adapters in PEFT's format. Every field of a foreign adapter's config is honoured, or refused by its name."""

import dataclasses
import json
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import expanded
from rlhf_marl.sanitise import first_line, printable

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Names = str | list[str]
"""Layers as PEFT takes them: a list of names, each a layer's full name or its end; or a regular expression over it."""

_log = logging.getLogger("rlhf_marl")
_FIELDS = {
    field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for field in dataclasses.fields(PeftLoraConfig)
}
_PREFIX = "base_model.model."
_LAYERS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# These change nothing that an adapter over linear layers computes. Dropout acts in training alone, where we use none.
_WITHOUT_EFFECT = {
    *("auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "ensure_weight_tying"),
}
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    # The others change the base model's weights too.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def read_adapter(folder: Path, where: str, settings: dict[str, tuple[str, Any]]) -> tuple[dict, dict[str, Tensor]]:
    """The config and weights of a PEFT folder.

    Args:
        settings: fields that must have a value, with the key that asks for it: {"r": ("lora.rank", 8)}.

    Raises:
        UsageError: not a LoRA adapter folder, damaged, other settings, or a field that is not supported.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            pickled = "; pickle weights are refused" if (folder / "adapter_model.bin").is_file() else ""
            raise UsageError(f"{where}: {str(folder)!r} is not a PEFT adapter folder: {file} is missing{pickled}")
    try:
        content = json.loads((folder / CONFIG).read_text("utf-8"))
        keys = content.keys()
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise UsageError(f"{where}: {str(folder)!r} is damaged: {first_line(error)}") from None
    where = f"{where}: {str(folder / CONFIG)!r}"
    for key in sorted(keys - _WITHOUT_EFFECT - {*_LAYERS} | settings.keys() | {"peft_type"}):
        value, default = content.get(key, _FIELDS.get(key)), _FIELDS.get(key)
        given = f"{where}: {printable(key)[:60]}: {printable(str(value))[:60]} given"
        if key in settings:
            asking, wanted = settings[key]
            if value != wanted:
                raise UsageError(f"{given}; {asking} is {wanted}")
        elif key in _ALLOWED:
            if value not in _ALLOWED[key]:
                raise UsageError(f"{given}; only {' or '.join(map(str, _ALLOWED[key]))} is supported")
        elif value != default and (value or default):  # null, false, {} and [] all mean that it is off
            raise UsageError(f"{given}; not supported" + (f", only {default}" if default else ""))
    return content, weights


def peft_weights(folder: Path, where: str) -> set[str]:
    """Names of the weights in a PEFT folder, without PEFT's prefix. Raises UsageError if there are none to read."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return {name.removeprefix(_PREFIX) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{where}: {str(folder / WEIGHTS)!r} cannot be read: {first_line(error)}") from None


def with_peft(model: PreTrainedModel, folder: Path, where: str, base: Sequence[str]) -> PeftModel:
    """The model with any adapter that PEFT can load, in evaluation mode.

    Args:
        base: names of the model; warns if the adapter names another one.

    Raises:
        UsageError: PEFT cannot load it, does not know a field of its config, or leaves some of its weights out.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(Unexpected keyword arguments|Found missing adapter keys)")
        try:
            named = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        except Exception as error:  # damaged files and wrong layers raise many unrelated types
            raise UsageError(f"{where}: {str(folder)!r} cannot be loaded: {first_line(error)}") from None
    loaded = {name.removeprefix(_PREFIX) for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    if odd := peft_weights(folder, where) - loaded:
        raise UsageError(f"{where}: {str(folder)!r}: PEFT does not use {printable(min(odd))} of its weights")
    warn_of_other_base(named, base, where)
    return adapted


def layers_of(content: dict[str, Any], modules: Iterable[str], linears: Iterable[str], where: str) -> set[str]:
    """The layers that a PEFT config adapts.

    Args:
        modules: names of all modules of the model. linears: of the linear layers but the output layer.

    Raises:
        UsageError: no layers given, or in a way that PEFT refuses.
    """
    given = {key: content[key] for key in _LAYERS if content.get(key)}
    if "target_modules" not in given:
        raise UsageError(f"{where}: target_modules: not given; name the layers")
    names = modules
    if given["target_modules"] == "all-linear":
        given["target_modules"], names = ".*", linears
    try:
        config = PeftLoraConfig(**given)
        return {name for name in names if check_target_module_exists(config, name)}
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UsageError(f"{where}: {printable(str(given))[:120]}: {first_line(error)}") from None


def shortest_names(layers: Iterable[str], names: Iterable[str]) -> list[str]:
    """Names for target_modules: the ends of the layers' names if no other module's name ends so, else full names."""
    layers = set(layers)
    ends = {layer.rpartition(".")[2] for layer in layers}
    return sorted(layers if any(name.rpartition(".")[2] in ends for name in {*names} - layers) else ends)


def warn_of_other_base(named: object, base: Sequence[str], where: str) -> None:
    """Warn if an adapter's config names another base model than any of these names of the one it goes over."""
    if named and not any(_same_model(str(named), name) for name in base):
        _log.warning("%s: the adapter was made for %s, not for %s", where, printable(str(named))[:200], base[0])


def _same_model(one: str, other: str) -> bool:
    """Two folders are the same if their paths are; a hub id is also the same as a folder or id of that name."""
    folders = [expanded(one), expanded(other)]
    if one == other or all(path.is_dir() for path in folders):
        return folders[0].resolve() == folders[1].resolve()
    return folders[0].name == folders[1].name
