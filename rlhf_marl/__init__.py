"""rlhf_marl: multi-agent RLHF of language models by decentralised deep actor-critic."""

import logging
from typing import TYPE_CHECKING, Any

from rlhf_marl.errors import inert
from rlhf_marl.perf.threads import wait_without_spinning

if TYPE_CHECKING:
    from rlhf_marl.api import Agent, Run, evaluate, load_run, sweep, train
    from rlhf_marl.config import load_config
    from rlhf_marl.hub.export import export

wait_without_spinning()
logging.getLogger("rlhf_marl").addFilter(inert)

__all__ = ["Agent", "Run", "evaluate", "export", "load_config", "load_run", "sweep", "train"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import rlhf_marl` and `rlhf-marl --help` do not wait for torch.
    if name in __all__:
        from rlhf_marl import api

        return getattr(api, name)
    raise AttributeError(f"module 'rlhf_marl' has no attribute {name!r}")
