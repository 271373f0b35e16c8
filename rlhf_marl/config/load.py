"""Read, check and write configs: YAML plus command-line overrides; one error line per mistake."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_marl.config.overrides import apply_overrides
from rlhf_marl.config.schema import Config
from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import write_text
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import dump_yaml, load_yaml


def load_config(reference: str, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and apply command-line overrides.

    Args:
        reference: path of the file; a shipped one (`configs/quickstart.yaml`) is found from any folder.
        overrides: `["--actor.signal", "td_q", "--agents.1.reward_model=reward_models/x.yaml", ...]`.

    Raises:
        UsageError: one line per mistake: file or option, key, what was given, what is allowed.
    """
    path = find_data(reference, "config")
    return check_config(apply_overrides(load_yaml(path), overrides), reference)


def check_config(content: Mapping[str, Any], where: str) -> Config:
    """Validate plain data as a Config; raise UsageError with one line per mistake."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UsageError(explain(error, where, content, _all_keys())) from None


def _all_keys() -> set[str]:
    schema = Config.model_json_schema()
    return {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}


def dump_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML, defaults included, in schema order; atomic."""
    write_text(path, dump_yaml(config.model_dump(mode="json")))
