"""Load models and tokenizers from any reference: safetensors only, one-line errors."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.chat import check_chat_template, stop_tokens
from rlhf_marl.policy.loaded_weights import Head, check_loaded
from rlhf_marl.policy.mkl_linear import use_mkl_linears
from rlhf_marl.policy.references import hub_problem, package_model, quiet, resolve_model
from rlhf_marl.sanitise import first_line

_WITHOUT_WEIGHTS = (AutoConfig, AutoTokenizer)  # read from a GGUF file's header before it is converted
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(TypedDict, total=False):
    """Hub revision, and whether the repository's code may run."""

    revision: str | None
    trust_remote_code: bool


@final
@dataclass(frozen=True, slots=True)
class ChatModel:
    """A frozen causal language model that can hold a dialogue.

    Attributes:
        stop_tokens: ids that end a response; the first one is also the padding id.
        context_length: maximum tokens of prompt and response together.
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
    """Load a chat model for inference; on the meta device only its shapes, for which no weights are read.

    Raises UsageError as `load_model_of` does, or without a chat template.
    """
    source: Source = {"revision": revision, "trust_remote_code": trust_remote_code}
    if device.type != "meta":
        resolve_model(reference, where)  # converts a packaged GGUF file, whose tokenizer is slow to read
    tokenizer = load_tokenizer(reference, where, **source)
    check_chat_template(tokenizer, f"{where}: {reference!r}")
    if device.type == "meta":
        model = shapes_of(AutoModelForCausalLM, reference, where, dtype=dtype_for(dtype, device), **source)
    else:
        model = load_model_of(AutoModelForCausalLM, reference, where, dtype=dtype_for(dtype, device), **source)
    use_mkl_linears(model.to(device).requires_grad_(False))
    ends = stop_tokens(tokenizer, model.generation_config.eos_token_id if model.generation_config else None)
    return ChatModel(model, tokenizer, ends)


def default_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The dtype named in a config or card; auto is bfloat16 on CUDA and float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_tokenizer(
    reference: str, where: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model reference; raises UsageError as `load_model_of` does."""
    return _load(AutoTokenizer, reference, where, revision, trust_remote_code)


def load_model_of(
    factory: type,
    reference: str,
    where: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    head: Head = "loaded",
    elsewhere: Collection[str] = (),
    **options: Any,
) -> PreTrainedModel:
    """Load a model in evaluation mode, safetensors only.

    Args:
        factory: AutoModelForCausalLM, AutoModel, ...
        dtype: auto: as the weights are stored.
        head: layers on top of the transformer that the files may lack: none (loaded), those that the caller trains, or
            those that it does not use.
        elsewhere: names of weights that the caller loads later.
        options: for `from_pretrained`, such as num_labels.

    Raises:
        UsageError: not a model, pickle weights, missing or unexpected weights, or a gated or unreachable hub id; one
            line with the remedy.
    """
    options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, info = _load(factory, reference, where, revision, trust_remote_code, **options)
    check_loaded(model, info, f"{where}: {reference!r}", head=head, elsewhere=elsewhere)
    return model.eval()


def shapes_of(
    factory: Any,
    reference: str,
    where: str,
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model on the meta device, from its config alone; raises UsageError as `load_model_of` does."""
    config = _load(AutoConfig, reference, where, revision, trust_remote_code)
    with torch.device("meta"):
        model = factory.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return model.eval()


def _load(
    factory: Any, reference: str, where: str, revision: str | None, trust_remote_code: bool, **options: Any
) -> Any:
    if trust_remote_code and not _COMMIT.fullmatch(revision or ""):
        raise UsageError(f"{where}: trust_remote_code needs a pinned revision (a 40-digit commit hash)")
    if factory in _WITHOUT_WEIGHTS and reference.startswith("package:"):
        folder, unconverted = package_model(reference, where)
        source = str(folder if unconverted is None else unconverted.parent)
        options |= {} if unconverted is None else {"gguf_file": unconverted.name}
    else:
        source = resolve_model(reference, where)
    local = Path(source).is_dir()
    if trust_remote_code:
        options["code_revision"] = revision  # for code in another repository that the model's config names
    with quiet():
        try:
            return factory.from_pretrained(
                source, revision=None if local else revision, trust_remote_code=trust_remote_code, **options
            )
        except Exception as error:  # damaged files and missing packages raise many unrelated types
            if local:
                reason = first_line(error)
                raise UsageError(f"{where}: {reference!r} cannot be loaded: {reason}") from None
            raise UsageError(hub_problem(reference, where, error)) from None
