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

from rlhf_marl.algorithm.mixing import consensus_power
from rlhf_marl.algorithm.topology import smallest_weight, spectral_gap
from rlhf_marl.errors import UsageError
from rlhf_marl.files.atomic import locked, write_text
from rlhf_marl.gridworld.diagnostics import communication, diagnose
from rlhf_marl.gridworld.draws import Draws, draw_all, draw_matrix
from rlhf_marl.gridworld.exact_training import ascend
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.study import results
from rlhf_marl.gridworld.study.claims import judge
from rlhf_marl.gridworld.study.config import StudyConfig, place, points, settings
from rlhf_marl.gridworld.study.experiments import EXPERIMENTS
from rlhf_marl.gridworld.study.figures import draw
from rlhf_marl.gridworld.study.health import warnings_in_words
from rlhf_marl.gridworld.study.measure import baselines, exact_values
from rlhf_marl.gridworld.study.results import Result
from rlhf_marl.gridworld.study.summary import summary
from rlhf_marl.gridworld.study.tables import tables
from rlhf_marl.gridworld.training import History, Policies, train

Results = dict[str, dict[str, dict[str, Result]]]  # regime, experiment, arm
Place = tuple[str, str, str]  # the same three
_ROUNDS = 31  # of gossip in the consensus error's curve
_DIAGNOSED = 10  # maximum number of seeds compared with exact critics and directions; at most a fifth of all


def run_study(config: StudyConfig, out: Path, report: Callable[[str], None]) -> Path:
    """Run missing settings, then write results.json, claims.md and the figures to `out`; returns it.

    The outputs cover this run only: figures of an earlier run that this one does not draw are removed.

    Raises:
        UsageError: a setting's consensus matrix breaks Assumption 5.1; `out` holds something else, or results of
            another version; or another process writes there.
        RunStopped: the disk is full.
    """
    wanted = {
        (regime, name, arm): setting
        for regime in config.regimes
        for name in config.runs(regime)
        for arm, setting in settings(config, regime, name).items()
    }
    _check_matrices(config, wanted)
    _check_folder(out)
    with locked(out, "--out"):
        results.check_version(out)
        return _run(config, wanted, out, report)


def _run(config: StudyConfig, wanted: dict[Place, Setting], out: Path, report: Callable[[str], None]) -> Path:
    files = {
        setting: out
        / "settings"
        / f"{results.fingerprint(setting, config.seed, config.seeds, config.points)}.safetensors"
        for setting in wanted.values()
    }
    found = {setting: results.load(path, setting) for setting, path in files.items()}
    missing: dict[Setting, Place] = {}
    for where, setting in wanted.items():
        if found[setting] is None:
            missing.setdefault(setting, where)
    report(f"{len(files)} settings of {config.seeds} seeds, {len(missing)} to run; writing to {out}")
    _run_missing(config, missing, files, found)
    by_experiment: Results = {}
    for (regime, name, arm), setting in wanted.items():
        result = found[setting]
        assert result is not None
        result.arrays.update(baselines(setting, config.seed, config.seeds))
        by_experiment.setdefault(regime, {}).setdefault(name, {})[arm] = result
    _draw(by_experiment, out / "figures")
    verdicts = judge(by_experiment)
    write_text(out / "claims.md", tables(verdicts, by_experiment, config))
    write_text(out / "results.json", json.dumps(summary(config, verdicts, by_experiment), indent=1) + "\n")
    for line in warnings_in_words(by_experiment):
        report(f"warning: {line}")
    return out


def _check_matrices(config: StudyConfig, wanted: dict[Place, Setting]) -> None:
    """Draw every seed's consensus matrix before the first run, so that errors surface at once."""
    checked = set()
    for where, setting in wanted.items():
        kind = (setting.n_agents, setting.graph, setting.edges, setting.matrix, setting.weights, setting.laziness)
        if (kind, setting.edge_probability) in checked:
            continue
        checked.add((kind, setting.edge_probability))
        for seed in range(config.seeds):
            try:
                draw_matrix(setting, config.seed, seed)
            except UsageError as error:
                raise UsageError(f"study: {place(*where)}: {error}") from None


def _draw(by_experiment: Results, folder: Path) -> None:
    drawn = set()
    for regime, experiments in by_experiment.items():
        for name, arms in experiments.items():
            draw(EXPERIMENTS[name], regime, arms, folder / f"{regime}_{name}")
            drawn.add(f"{regime}_{name}")
    for path in folder.iterdir():
        if path.suffix in (".svg", ".png") and path.stem not in drawn:
            path.unlink()


def _check_folder(out: Path) -> None:
    """Accept a new folder, an empty one, or a study's."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {str(out)!r} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "settings").is_dir():
        raise UsageError(f"--out: {str(out)!r} holds something else than a study; choose another folder")
    try:
        (out / "settings").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {str(out)!r} cannot be created: {error.strerror}") from None


def _run_missing(
    config: StudyConfig,
    missing: dict[Setting, Place],
    files: dict[Setting, Path],
    found: dict[Setting, Result | None],
) -> None:
    """missing: setting -> first place that needs it."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:.0f}%"))
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("starting", total=sum(_cost(setting) * setting.iterations for setting in missing))
        for number, (setting, (regime, name, arm)) in enumerate(missing.items(), 1):
            progress.update(task, description=f"{number}/{len(missing)} {regime} {name}: {arm}")
            cost = _cost(setting)

            def advance(iterations: int, cost: float = cost) -> None:
                progress.advance(task, cost * iterations)

            found[setting] = result = run_setting(setting, config, advance)
            results.save(files[setting], result)


def run_setting(setting: Setting, config: StudyConfig, progress: Callable[[int], None] = lambda n: None) -> Result:
    """Train one setting on all seeds and measure it."""
    began = time.monotonic()
    draws = draw_all(setting, config.seed, range(config.seeds))
    at = points(config, setting)
    if setting.direction == "exact":
        history = ascend(setting, draws, at, progress)
    else:
        history = train(setting, config.seed, range(config.seeds), at, draws=draws, progress=progress)
    value = history.reward
    if setting.n_agents == 2:
        value = np.stack([exact_values(draws.landmarks, policies) for policies in history.policies], axis=1)
    arrays = {
        "value": value,
        "consensus": _consensus(setting, draws, history),
        "power": consensus_power(torch.as_tensor(draws.matrix), setting.gossip_rounds).numpy(),
        "gap": np.array([spectral_gap(torch.as_tensor(matrix)) for matrix in draws.matrix]),
        "eta": np.array([smallest_weight(torch.as_tensor(matrix)) for matrix in draws.matrix]),
        **communication(setting, draws),
    }
    logged = ("reward", "value", "positive", "entropy", "projected", "skipped", "dead", "dead_actors")
    for name in (*logged, "disagreement_before", "disagreement_after", "distance", "points"):
        arrays["critic_value" if name == "value" else name] = getattr(history, name)
    if setting.n_agents == 2 and setting.critic != "exact":
        last = history.policies[-1]
        n = max(2, min(_DIAGNOSED, config.seeds // 5))
        few = Policies(last.h[:n], last.w[:n], last.b[:n])
        arrays |= diagnose(setting, draws, few, history.critics)
    return Result(setting, {name: array.astype(np.float64) for name, array in arrays.items()}, time.monotonic() - began)


def _cost(s: Setting) -> float:
    """Time of an iteration, up to a factor that is the same for all settings."""
    if s.direction == "exact":
        return 2e8
    networks = s.critic_steps * (5 if s.critic == "deep" else 1) + s.actor_samples * 5
    return s.n_agents * (s.depth * s.width**2 + 2000) * networks + 1e7 * (s.critic == "exact")


def _consensus(setting: Setting, draws: Draws, history: History) -> np.ndarray:
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
        weights = draws.matrix @ weights
    first = np.where(errors[0] > 0, errors[0], np.nan)
    return np.stack(errors, axis=1) / first[:, None]
