"""The experiment's configuration: one YAML file, every key checked, command line over file.

schema.py  all keys    load.py  read, check, write    overrides.py  --key.sub value    validation.py  errors in words
"""

from rlhf_marl.config.load import check_config, dump_config, load_config
from rlhf_marl.config.overrides import apply_overrides
from rlhf_marl.config.schema import Config

__all__ = ["Config", "apply_overrides", "check_config", "dump_config", "load_config"]
