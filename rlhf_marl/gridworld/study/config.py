"""The study's configuration: seeds, points, regimes, and which experiments to run."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rlhf_marl.config import NonNegativeInt, Section, apply_overrides
from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS
from rlhf_marl.paths import find_data
from rlhf_marl.validation import explain
from rlhf_marl.yaml_io import load_yaml

_QUICK_SEEDS, _QUICK_SHARE = 20, 0.1


class StudyConfig(Section):
    """Every experiment is run under every regime, by all seeds."""

    seed: NonNegativeInt = 0
    """Master seed of all random numbers."""
    seeds: Annotated[int, Field(ge=2)] = 100
    """Repeats; intervals are over them."""
    points: Annotated[int, Field(ge=2, le=1000)] = 20
    """Where along a run rewards are logged and policies evaluated."""
    regimes: dict[str, dict[str, Any]] = Field({"literal": {}}, min_length=1)
    """Name to settings that differ from the paper's letter; each experiment varies one of these."""
    experiments: list[str] = Field(list(EXPERIMENTS), min_length=1)
    """Names of experiments."""
    iterations_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Every setting runs this share of its iterations."""

    @model_validator(mode="after")
    def _known(self) -> "StudyConfig":
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise ValueError(f"experiments: {name!r} is not an experiment; choose {', '.join(EXPERIMENTS)}")
        return self

    def quick(self) -> "StudyConfig":
        """Fewer seeds and shorter runs: minutes, with wide intervals."""
        return self.model_copy(update={"seeds": min(self.seeds, _QUICK_SEEDS), "iterations_share": _QUICK_SHARE})


def load_study(reference: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study's YAML, with `--key.sub value` over it; raises UsageError with one line per mistake."""
    content = apply_overrides(load_yaml(find_data(reference, "study")), overrides)
    try:
        config = StudyConfig.model_validate(content)
    except ValidationError as error:
        keys = StudyConfig.model_json_schema()["properties"]
        raise UsageError(explain(error, reference, content, keys)) from None
    for regime in config.regimes:
        for name in config.experiments:
            settings(config, regime, name, reference)  # every mistake is told before the first run
    return config


def settings(config: StudyConfig, regime: str, experiment: str, source: str = "study") -> dict[str, Setting]:
    """The arms of an experiment under a regime: label to setting.

    Raises:
        UsageError: a regime's or arm's keys are no setting.
    """
    base = config.regimes[regime]
    result = {}
    for label, change in EXPERIMENTS[experiment].arms.items():
        content = base | change(base)
        try:
            setting = Setting.model_validate(content)
        except ValidationError as error:
            where = f"{source}: regimes.{regime}" + (f" ({experiment}: {label})" if change(base) else "")
            keys = Setting.model_json_schema()["properties"]
            raise UsageError(explain(error, where, content, keys)) from None
        shorter = max(config.points, round(setting.iterations * config.iterations_share))
        result[label] = setting.model_copy(update={"iterations": shorter})
    return result


def points(config: StudyConfig, setting: Setting) -> list[int]:
    """Iterations at which a run is logged: evenly spaced, the last one at its end."""
    return [round(setting.iterations * (i + 1) / config.points) for i in range(config.points)]
