"""The experiment's configuration: one YAML file; every key is checked; the command line overrides the file.

schema.py  all keys    load.py  read, check, write    overrides.py  --key.sub value    validation.py  error messages
"""

from rlhf_marl.config.load import check_config, dump_config, load_config
from rlhf_marl.config.overrides import apply_overrides
from rlhf_marl.config.schema import Config

__all__ = ["Config", "apply_overrides", "check_config", "dump_config", "load_config"]
