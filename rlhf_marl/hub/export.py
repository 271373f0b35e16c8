"""`rlhf-marl export`: one agent as a folder in the Hub's format.

adapter:  adapter_model.safetensors, adapter_config.json, tokenizer, README.md
merged:   model, config, tokenizer, README.md, and the adapter in adapter/. (Next to a merged model's config.json, an
          adapter_config.json would make transformers add the adapter a second time.)
"""

import json
import logging
import os
import shutil
import warnings
from importlib import metadata
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_marl.config import Config
from rlhf_marl.config.schema import ModelConfig
from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.evaluation.trained_run import recorded, state_of
from rlhf_marl.hub import push as hub
from rlhf_marl.hub.base_model import describe_base
from rlhf_marl.hub.card import RunFacts, model_card
from rlhf_marl.hub.export_folder import check_target, read_object, writing_export
from rlhf_marl.hub.results import load_evaluation
from rlhf_marl.policy.loading import load_model_of, load_tokenizer
from rlhf_marl.policy.references import quiet
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.runs.handed_out import FOLDERS, Choice, choice, in_words
from rlhf_marl.training.build import model_key

_log = logging.getLogger("rlhf_marl")
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def export(
    run_dir: str | os.PathLike[str],
    *,
    agent: int,
    to: str | os.PathLike[str],
    merge: bool = False,
    push: str | None = None,
    public: bool = False,
    adapters: Choice | None = None,
) -> str:
    """Write one trained agent to a folder that others can use, and optionally upload it.

    Args:
        run_dir: a run directory with adapters.
        agent: number of the agent, from 0.
        to: a new folder, or an unchanged earlier export; it is written atomically.
        merge: write the base model with the adapter merged into its weights; the adapter goes to adapter/.
        push: OWNER/NAME on the hub; a new repository is private unless `public`. The token comes from HF_TOKEN or
            `hf auth login`.
        adapters: the run's best or last adapter; by default the best where held-out judges chose it in training.

    Returns:
        The folder's path, or the repository's address.

    Raises:
        UsageError: no such agent, an unusable `to` or base model, or the hub refused.
        RlhfMarlError: the disk or the hub failed.
    """
    source, target = Path(run_dir), Path(to).absolute()
    facts, adapter = _read_run(source, agent, adapters)
    check_target(target)
    if public and push is None:
        raise UsageError("--public: only with --push")
    token = hub.check_push(push) if push is not None else ""
    model = facts.config.model_of(agent)
    where = model_key(facts.config, agent, f"{source}/config.yaml")
    config = read_object(adapter / _CONFIG)
    base = describe_base(model, config.get("base_model_name_or_path"), f"{where}.name")
    with writing_export(target) as folder:
        inner = folder / "adapter" if merge else folder
        inner.mkdir(exist_ok=True)
        shutil.copyfile(adapter / _WEIGHTS, inner / _WEIGHTS)
        config |= {"base_model_name_or_path": base.reference, "revision": base.revision}
        (inner / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        options = model.model_dump(exclude={"name", "dtype"})
        load_tokenizer(model.name, f"{where}.name", **options).save_pretrained(folder)
        if merge:
            with quiet():
                merged_model(model, adapter, where).save_pretrained(folder)
        model_card(facts, agent, base, merged=merge).save(folder / "README.md")
    if push is None:
        return str(to)
    message = f"Agent {agent}, exported by rlhf-marl {metadata.version('rlhf-marl')}"
    try:
        return hub.push(target, push, token, public=public, message=message)
    except RlhfMarlError as error:
        raise type(error)(f"{error}; the folder {to} is written") from None


def merged_model(model: ModelConfig, adapter: Path, where: str) -> PreTrainedModel:
    """The base model with W + scaling B A for each adapted W, in the base model's stored precision."""
    base = load_model_of(
        AutoModelForCausalLM,
        model.name,
        f"{where}.name",
        dtype="auto",
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a property that the latter has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload(safe_merge=True)
    return merged


def _read_run(path: Path, agent: int, asked: Choice | None) -> tuple[RunFacts, Path]:
    """A run's facts and the folder of the agent's adapter; raises UsageError for what is missing or does not fit."""
    run, config, packages = _open(path)
    cards = run.cards()
    if len(cards) != len(config.agents):
        raise UsageError(f"{path}/reward_models.json: {len(cards)} cards; config.yaml has {len(config.agents)} agents")
    if not 0 <= agent < len(cards):
        names = ", ".join(f"{number} ({card.name})" for number, card in enumerate(cards))
        raise UsageError(f"--agent: {agent} given; {path} has {len(cards)} agents: {names}")
    which = choice(path, config, asked)
    adapter = path / FOLDERS[which] / f"agent_{agent}"
    done = _check_adapter(run, config, adapter, agent, which)
    if which == "best":
        _log.warning("%s: exports %s; --adapters last exports the last", path, in_words(path, config, which))
    if run.metrics.is_file() and run.metrics.stat().st_size == 0:
        raise UsageError(f"{run.metrics}: has no updates, so the adapters are untrained")
    rows = [row for row in recorded(run) if done is None or row["iteration"] < done]
    iterations = done if done is not None else max((row["iteration"] + 1 for row in rows), default=None)
    return RunFacts(config, rows, iterations, cards, packages, load_evaluation(path, which)), adapter


def _open(path: Path) -> tuple[RunDirectory, Config, dict[str, str]]:
    """The run, its config and the package versions that wrote it, if known."""
    try:
        found = read_object(path / "environment.json").get("packages")
    except UsageError:
        found = None
    packages = {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}
    try:
        return *RunDirectory.open(path, "export"), packages
    except UsageError as error:
        written, here = packages.get("rlhf-marl"), metadata.version("rlhf-marl")
        if written in (None, here):
            raise
        raise UsageError(
            f"{path} was written by rlhf-marl {written}; this is version {here}: export it with {written} "
            f"(the folders in {path}/adapters also open with plain PEFT); {str(error).splitlines()[0]}"
        ) from None


def _check_adapter(run: RunDirectory, config: Config, adapter: Path, agent: int, which: Choice) -> int | None:
    """How many iterations the adapter was trained for, by the newest or best checkpoint; None without checkpoints.

    Raises:
        UsageError: the run has not written its adapters yet, or has trained further since.
    """
    checkpoint = state_of(run, which)
    done = checkpoint[1]["iteration"] if checkpoint is not None else None
    if not all((adapter / name).is_file() for name in (_CONFIG, _WEIGHTS)):
        problem = "has no adapters yet"
    else:
        saved = _numbers(adapter / _WEIGHTS)
        if checkpoint is None or torch.equal(saved, checkpoint[0][f"agent_{agent}.adapter"].sort().values):
            return done
        problem = "has trained further since it wrote its adapters"
    finish = f"rlhf-marl train {run.path}/config.yaml --run-dir {run.path} --resume"
    early = f"; with --iterations {done} it writes those of its newest checkpoint" if done else ""
    raise UsageError(
        f"{run.path} {problem} ({done or 0} of {config.iterations} iterations are saved): `{finish}` finishes it{early}"
    )


def _numbers(weights: Path) -> Tensor:
    """All numbers of a PEFT file, sorted: a checkpoint has the same ones in another order."""
    try:
        return torch.cat([tensor.flatten() for tensor in load_file(weights).values()]).sort().values
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UsageError(f"{weights}: damaged: {error}") from None
