"""Load models and tokenizers from any reference: safetensors only, one-line errors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, final

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.chat import stop_tokens
from rlhf_marl.policy.generation import fill_absent
from rlhf_marl.policy.half_linear import use_half_precision
from rlhf_marl.policy.loaded_weights import Head, check_loaded
from rlhf_marl.policy.model_checks import check_reading
from rlhf_marl.policy.references import hub_problem, package_model, quiet, resolve_model
from rlhf_marl.policy.templates import DATE, Value, adapt_template, check_chat_template, template_tokens, turn_end
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
        return context_of(self.model)


def load_chat_model(
    reference: str,
    where: str,
    device: torch.device,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Value] | None = None,
    chat_template_date: str = DATE,
) -> ChatModel:
    """Load a chat model for inference; on the meta device only its shapes, for which no weights are read.

    Raises:
        UsageError: as `load_model_of` and `adapt_template` do; a template that does not render dialogues; no end token;
            or a tokenizer that does not fit the model.
    """
    source: Source = {"revision": revision, "trust_remote_code": trust_remote_code}
    if device.type != "meta":
        resolve_model(reference, where)  # converts a packaged GGUF file, whose tokenizer is slow to read
    tokenizer = load_chat_tokenizer(
        reference,
        where,
        **source,
        chat_template=chat_template,
        chat_template_kwargs=chat_template_kwargs,
        chat_template_date=chat_template_date,
    )
    load = shapes_of if device.type == "meta" else load_model_of
    model = load(AutoModelForCausalLM, reference, where, dtype=dtype_for(dtype, device), **source)
    check_cache(model, f"{where}: {reference!r}")
    check_vocabulary(model, tokenizer, f"{where}: {reference!r}")
    model.to(device).requires_grad_(False)
    if device.type != "meta":
        check_reading(model, tokenizer, f"{where}: {reference!r}")
    hide_absent_tokens(model, tokenizer)
    if dtype == "auto":
        use_half_precision(model)
    ends = stop_tokens(
        tokenizer, model.generation_config.eos_token_id if model.generation_config else None, turn_end(tokenizer)
    )
    if not ends:
        raise UsageError(
            f"{where}: {reference!r} has no end token: neither its tokenizer nor its generation config names one, and "
            "its chat template writes none after an answer"
        )
    return ChatModel(model, tokenizer, ends)


def hide_absent_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give ids that the tokenizer does not have, such as rows that pad the embedding, probability 0 in all policies.

    Sampling and log-probabilities both get their logits from the model, which this changes once for both.
    """
    known = set(tokenizer.get_vocab().values())
    head = model.get_output_embeddings() or model.get_input_embeddings()
    absent = [number for number in range(head.weight.shape[0]) if number not in known]
    if not absent:
        return
    model.register_buffer("absent_tokens", torch.tensor(absent, device=model.device), persistent=False)
    model.register_forward_hook(lambda _, inputs, output: fill_absent(model, output.logits.detach()))


def context_of(model: PreTrainedModel) -> int:
    """Most tokens that a model's positions allow; 10**9 if any number does.

    RoBERTa and its kin count positions from their padding id, so their 514 positions are for 512 tokens.
    """
    learned = [layer for name, layer in model.named_modules() if name.endswith("position_embeddings")]
    for layer in learned:
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            return layer.num_embeddings - layer.padding_idx - 1
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else 10**9


def check_cache(model: PreTrainedModel, where: str) -> None:
    """Raise UsageError if a layer keeps something else than keys and values, as Mamba's and hybrids' do."""
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception as error:  # configs without what the cache reads raise unrelated types
        others = {first_line(error)}
    else:
        others = {type(layer).__name__ for layer in layers if not _keeps_keys(layer)}
    if others:
        raise UsageError(
            f"{where}: a {type(model).__name__} caches no keys and values in some layers ({min(others)}); only models "
            "with attention in all layers are supported"
        )


def _keeps_keys(layer: object) -> bool:
    return isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionLayer)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise UsageError if a text can have tokens that the model's embedding lacks.

    Special tokens may be absent, such as those of images in a tokenizer that text models share: texts cannot contain
    them.
    """
    rows = model.get_input_embeddings().num_embeddings
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = set(tokenizer.get_vocab().values()) - special
    needed.update(end for end in (tokenizer.eos_token_id, tokenizer.bos_token_id) if end is not None)
    if tokenizer.chat_template:
        needed.update(template_tokens(tokenizer))
    if max(needed) >= rows:
        raise UsageError(f"{where}: its tokenizer has token {max(needed)}; the model's embedding has {rows}, from 0")


def default_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The dtype named in a config or card; auto is bfloat16 on CUDA and float32 elsewhere.

    On a CPU, auto also rounds the weights of chat models to half precision (half_linear.py).
    """
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_tokenizer(
    reference: str,
    where: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Value] | None = None,
    chat_template_date: str = DATE,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model reference, with its chat template as `adapt_template` leaves it.

    Raises:
        UsageError: as `load_model_of` and `adapt_template` do.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, reference, where, revision, trust_remote_code)
    adapt_template(
        tokenizer,
        where.removesuffix(".name"),
        chosen=chat_template,
        values=chat_template_kwargs,
        day=chat_template_date,
    )
    return tokenizer


def load_chat_tokenizer(reference: str, where: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a chat model. options: of `load_tokenizer`.

    Raises:
        UsageError: as `load_tokenizer` does, or a template that does not render dialogues.
    """
    tokenizer = load_tokenizer(reference, where, **options)
    check_chat_template(tokenizer, f"{where}: {reference!r}")
    token = tokenizer.added_tokens_decoder.get(turn_end(tokenizer))
    if token is not None and not token.special:  # a control token, which no message may forge and no answer shows
        token.special = True
        tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer


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


def load_embeddings(
    reference: str, where: str, device: torch.device, *, dtype: str = "auto", **source: Unpack[Source]
) -> Tensor:
    """The token embeddings of a chat model as `load_chat_model` has them, (vocabulary, e); the rest is freed again.

    Raises:
        UsageError: as `load_model_of` does.
    """
    model = load_model_of(AutoModelForCausalLM, reference, where, dtype=dtype_for(dtype, device), **source)
    model.to(device).requires_grad_(False)
    if dtype == "auto":
        use_half_precision(model)  # rounds embeddings that are tied to the output layer
    return model.get_input_embeddings().weight


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
    try:
        with torch.device("meta"):
            return factory.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()
    except Exception as error:  # the models' code raises many unrelated types
        raise UsageError(f"{where}: {reference!r} cannot be loaded: {first_line(error)}") from None


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
