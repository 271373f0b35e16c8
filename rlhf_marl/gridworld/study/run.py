"""Run a study: every setting once, then figures, claims and results.json.

StudyConfig -> settings -> [ train -> measure -> file ]* -> tables, figures
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_marl.algorithm import smallest_weight, spectral_gap
from rlhf_marl.durable import locked, write_text
from rlhf_marl.errors import UsageError
from rlhf_marl.gridworld.diagnostics import communication, diagnose
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study import results
from rlhf_marl.gridworld.study.claims import judge
from rlhf_marl.gridworld.study.config import StudyConfig, points, settings
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS
from rlhf_marl.gridworld.study.figures import draw
from rlhf_marl.gridworld.study.measure import baselines, exact_values, interval
from rlhf_marl.gridworld.study.results import Result
from rlhf_marl.gridworld.study.tables import write_tables
from rlhf_marl.gridworld.training import History, Policies, train
from rlhf_marl.gridworld.world import World, draw_world

Results = dict[str, dict[str, dict[str, Result]]]  # regime, experiment, arm
_ROUNDS = 31  # of gossip in the consensus error's curve
_DIAGNOSED = 10  # at most so many seeds' critics and directions are compared with exact ones, and a fifth of all


def run_study(config: StudyConfig, out: Path, report: Callable[[str], None]) -> Path:
    """Run what is not there yet, then write results.json, claims.md and the figures to `out`; returns it.

    Raises:
        UsageError: `out` holds something else, or results of another version; or another process writes there.
        RunStopped: the disk is full.
    """
    _check_folder(out)
    with locked(out, "--out"):
        return _run(config, out, report)


def _run(config: StudyConfig, out: Path, report: Callable[[str], None]) -> Path:
    wanted = {
        (regime, name, arm): setting
        for regime in config.regimes
        for name in config.experiments
        for arm, setting in settings(config, regime, name).items()
    }
    files = {
        setting: out
        / "settings"
        / f"{results.fingerprint(setting, config.seed, config.seeds, config.points)}.safetensors"
        for setting in wanted.values()
    }
    found = {setting: results.load(path, setting) for setting, path in files.items()}
    missing = [setting for setting, result in found.items() if result is None]
    report(f"{len(files)} settings of {config.seeds} seeds, {len(missing)} to run; writing to {out}")
    _run_missing(config, missing, files, found)
    by_experiment: Results = {}
    for (regime, name, arm), setting in wanted.items():
        result = found[setting]
        assert result is not None
        result.arrays.update(baselines(setting, config.seed, config.seeds))
        by_experiment.setdefault(regime, {}).setdefault(name, {})[arm] = result
    for regime, experiments in by_experiment.items():
        for name, arms in experiments.items():
            draw(EXPERIMENTS[name], regime, arms, out / "figures" / f"{regime}_{name}")
    verdicts = judge(by_experiment)
    write_tables(verdicts, by_experiment, config, out / "claims.md")
    summary = {
        "version": results.VERSION,
        "config": config.model_dump(mode="json"),
        "seconds": sum(result.seconds for result in found.values() if result is not None),
        "claims": [verdict.as_json() for verdict in verdicts],
        "experiments": {
            regime: {
                name: {arm: _summary(result) for arm, result in arms.items()} for name, arms in experiments.items()
            }
            for regime, experiments in by_experiment.items()
        },
    }
    write_text(out / "results.json", json.dumps(summary, indent=1) + "\n")
    return out


def _check_folder(out: Path) -> None:
    """A new folder, an empty one, or one of a study."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {str(out)!r} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "settings").is_dir():
        raise UsageError(f"--out: {str(out)!r} holds something else than a study; choose another folder")
    try:
        (out / "settings").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {str(out)!r} cannot be created: {error.strerror}") from None


def _run_missing(
    config: StudyConfig, missing: list[Setting], files: dict[Setting, Path], found: dict[Setting, Result | None]
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:.0f}%"))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("starting", total=sum(_cost(setting) * setting.iterations for setting in missing))
        for number, setting in enumerate(missing, 1):
            progress.update(task, description=f"setting {number}/{len(missing)}")
            cost = _cost(setting)

            def advance(iterations: int, cost: float = cost) -> None:
                progress.advance(task, cost * iterations)

            found[setting] = result = run_setting(setting, config, advance)
            results.save(files[setting], result)


def run_setting(setting: Setting, config: StudyConfig, progress: Callable[[int], None] = lambda n: None) -> Result:
    """Train one setting on all seeds and measure it."""
    began = time.monotonic()
    world = draw_world(setting, config.seed, range(config.seeds))
    at = points(config, setting)
    history = train(setting, config.seed, range(config.seeds), at, world=world, progress=progress)
    value = history.reward
    if setting.n_agents == 2:
        value = np.stack([exact_values(world.landmarks, policies) for policies in history.policies], axis=1)
    arrays = {
        "value": value,
        "consensus": _consensus(setting, world, history),
        "gap": np.array([spectral_gap(torch.as_tensor(matrix)) for matrix in world.matrix]),
        "eta": np.array([smallest_weight(torch.as_tensor(matrix)) for matrix in world.matrix]),
        **communication(setting, world),
    }
    logged = ("reward", "value", "positive", "entropy", "projected", "skipped", "dead", "disagreement_before")
    for name in (*logged, "disagreement_after", "distance", "points"):
        arrays["critic_value" if name == "value" else name] = getattr(history, name)
    if setting.n_agents == 2:
        last = history.policies[-1]
        n = max(2, min(_DIAGNOSED, config.seeds // 5))
        few = Policies(last.h[:n], last.w[:n], last.b[:n])
        arrays |= diagnose(setting, world, few, history.critics)
    return Result(setting, {name: array.astype(np.float64) for name, array in arrays.items()}, time.monotonic() - began)


def _cost(s: Setting) -> float:
    """Time of an iteration, up to a factor that is the same for all settings."""
    networks = s.critic_steps * (5 if s.critic == "deep" else 1) + s.actor_samples * 5
    return s.n_agents * (s.depth * s.width**2 + 2000) * networks


def _consensus(setting: Setting, world: World, history: History) -> np.ndarray:
    """Disagreement of the last critics after 0, 1, ... rounds of gossip, against that before: (S, rounds)."""
    n = setting.n_agents
    before = history.critics.before[:, :n]
    weights = before.reshape(*before.shape[:2], -1).astype(float)
    if weights.shape[1] < n:
        return np.full((len(before), _ROUNDS), np.nan)
    weights = weights - weights.mean(1, keepdims=True)
    errors = []
    for _ in range(_ROUNDS):
        errors.append(np.sqrt((weights**2).sum((1, 2))))
        weights = world.matrix @ weights
    first = np.where(errors[0] > 0, errors[0], np.nan)
    return np.stack(errors, axis=1) / first[:, None]


def _summary(result: Result) -> dict:
    """Curves with intervals, and the baselines."""
    arrays = result.arrays
    curve = [interval(column) for column in arrays["value"].T]
    diagnosed = ("critic_error", "critic_correlation", "msbe", "cosine", "messages", "bytes")
    return {
        "setting": result.setting.model_dump(mode="json"),
        "seconds": round(result.seconds, 1),
        "iterations": arrays["points"].astype(int).tolist(),
        "value": {key: [round(row[i], 5) for row in curve] for i, key in enumerate(("mean", "low", "high"))},
        "baselines": {
            name: round(float(arrays[name].mean()), 5)
            for name in ("random", "start", "constant", "optimum", "bound")
            if name in arrays
        },
        "health": {
            name: [round(float(x), 6) for x in arrays[name].mean(0)]
            for name in ("critic_value", "positive", "entropy", "projected", "skipped", "dead")
        },
        "diagnostics": {name: [round(x, 5) for x in interval(arrays[name])] for name in diagnosed if name in arrays},
    }
