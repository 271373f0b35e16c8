"""The study's configuration: seeds, points, regimes, and which experiments to run."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from rlhf_marl.config import apply_overrides
from rlhf_marl.config.schema import NonNegativeInt, Section
from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study.experiments import ALIASES, EXPERIMENTS

_QUICK_SEEDS, _QUICK_SHARE = 20, 0.1


def _without_aliases(names: list[str]) -> list[str]:
    return list(dict.fromkeys(ALIASES.get(name, name) for name in names))


class StudyConfig(Section):
    """Every experiment runs under every regime with all seeds, apart from those that are about one regime."""

    seed: NonNegativeInt = 0
    """Master seed of all random numbers."""
    seeds: Annotated[int, Field(ge=2)] = 100
    """Number of repeats; intervals are taken over them."""
    points: Annotated[int, Field(ge=2, le=1000)] = 20
    """Number of points in a run at which rewards are logged and policies evaluated."""
    regimes: dict[str, dict[str, Any]] = Field({"printed": {}}, min_length=1)
    """Regime name to the settings that differ from the paper; experiments vary these."""
    experiments: Annotated[list[str], AfterValidator(_without_aliases)] = Field(list(EXPERIMENTS), min_length=1)
    """Names of experiments; fig10 is an alias of fig2."""
    iterations_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Every setting runs this share of its iterations."""

    @model_validator(mode="after")
    def _known(self) -> "StudyConfig":
        for name in self.experiments:
            if name not in EXPERIMENTS:
                raise ValueError(f"experiments: {name!r} is not an experiment; choose {', '.join(EXPERIMENTS)}")
        if not any(self.runs(regime) for regime in self.regimes):
            names = ", ".join(f"{name} (regime {EXPERIMENTS[name].regime})" for name in self.experiments)
            raise ValueError(f"experiments: none of {names} runs under {', '.join(self.regimes)}")
        return self

    def runs(self, regime: str) -> list[str]:
        """Names of the experiments that run under a regime."""
        return [name for name in self.experiments if EXPERIMENTS[name].regime in (None, regime)]

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
        for name in config.runs(regime):
            settings(config, regime, name, reference)  # all errors before the first run
    return config


def settings(config: StudyConfig, regime: str, experiment: str, source: str = "study") -> dict[str, Setting]:
    """The arms of an experiment under a regime: label to setting.

    Raises:
        UsageError: a regime or arm has invalid settings.
    """
    base = _setting(config.regimes[regime], f"{source}: regimes.{regime}")
    # Shortened first, so that values an arm derives from the iterations, such as α, match the run.
    base = base.model_copy(update={"iterations": max(config.points, round(base.iterations * config.iterations_share))})
    result = {}
    for label, change in EXPERIMENTS[experiment].arms.items():
        where = f"{source}: {place(regime, experiment, label)}"
        setting = _setting(base.model_dump() | change(base), where)
        result[label] = setting.model_copy(update={"iterations": max(config.points, setting.iterations)})
    return result


def place(regime: str, experiment: str, arm: str) -> str:
    """How an arm is named in messages."""
    return f"regimes.{regime} ({experiment}: {arm})"


def _setting(content: dict[str, Any], where: str) -> Setting:
    try:
        return Setting.model_validate(content)
    except ValidationError as error:
        raise UsageError(explain(error, where, content, Setting.model_json_schema()["properties"])) from None


def points(config: StudyConfig, setting: Setting) -> list[int]:
    """Iterations at which a run is logged: evenly spaced, the last one at its end."""
    return [round(setting.iterations * (i + 1) / config.points) for i in range(config.points)]
