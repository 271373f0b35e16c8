"""Implementation of `rlhf-marl reward ...`: score, calibrate, agreement of reward models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import read_rows, text_at
from rlhf_marl.rewards import Card, DataRow, RewardModel, TrainedCard, build_reward_model, load_card, score_all
from rlhf_marl.rewards.gate import load_gate, measure
from rlhf_marl.rewards.preferences import Pair, load_pairs
from rlhf_marl.rewards.sequence_classifier import Preferred, SequenceClassifier
from rlhf_marl.rewards.training import Accuracy, accuracy

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of reward models on the same pairs.

    accuracy: per card, and of two baselines: the longer response wins, and a coin flip.
    correlation: per pair of cards, Spearman's rank correlation of their score differences (chosen - rejected), with a
    95% interval by bootstrap over pairs.
    """

    accuracy: dict[str, Accuracy]
    correlation: dict[tuple[str, str], tuple[float, float, float]]


def opened(reference: str, where: str = "card") -> tuple[Card, RewardModel]:
    """Load a card that can score, and its model."""
    card = load_card(reference, where).finished()
    return card, build_reward_model(card)


def scored(
    card: Card, model: RewardModel, texts: Sequence[dict[str, Any]], where: str
) -> tuple[list[float], list[float]]:
    """Raw and scaled scores of what `read_texts` read; further keys are the columns of the data.

    Raises:
        UsageError: a reward function needs a column that they lack; RunStopped: as `score_all`.
    """
    rows: list[DataRow] = [{key: row[key] for key in row if key not in ("prompt", "response")} for row in texts]
    card.check_columns(list(dict.fromkeys(name for row in rows for name in row)), where)
    return score_all(card, model, [row["prompt"] for row in texts], [row["response"] for row in texts], rows=rows)


def calibrated(card: Card, model: RewardModel, texts: Sequence[dict[str, Any]], where: str) -> tuple[float, float]:
    """(scale, offset) that give these responses mean 0 and standard deviation 1: scaled = (raw + offset) / scale.

    Raises:
        UsageError: fewer than two responses, or all scores equal.
    """
    raw = np.asarray(scored(card, model, texts, where)[0])
    if len(raw) < 2 or not raw.std(ddof=1) > 0:
        raise UsageError("reward calibrate: needs at least two responses with different scores")
    return float(raw.std(ddof=1)), float(-raw.mean())


def gated(reference: str, source: str, where: str = "reward gate") -> tuple[Card, dict[str, Preferred]]:
    """A card that can score and its gate's table, measured on this source without the pairs that a recipe names."""
    recipe = load_card(reference, where)
    named = [recipe.data, *recipe.junk] if isinstance(recipe, TrainedCard) else []
    trained = [pair for name in named for pair in load_pairs(name, where, on_bad_row="skip")]
    kinds = load_gate(source, f"{where}: --pairs", trained)
    card = recipe.finished()
    return card, measure(kinds, card, build_reward_model(card))


def agreement(models: Sequence[tuple[Card, RewardModel]], pairs: Sequence[Pair], seed: int = 0) -> Agreement:
    """Score the pairs with every model and compare. Raises UsageError if two cards have the same name."""
    names = [card.name for card, _ in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"reward agreement: two cards are named {name!r}; give one of them another name")
    texts = [pair.texts for pair in pairs]
    messages = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    differences: dict[str, np.ndarray] = {}
    accuracies = {}
    for card, model in models:
        card.check_columns((), "reward agreement")
        rows: Any = messages if isinstance(model, SequenceClassifier) else texts  # it reads roles
        prompts, liked, disliked = (list(column) for column in zip(*rows, strict=True))
        scores, _ = score_all(card, model, prompts * 2, liked + disliked)
        chosen, rejected = scores[: len(pairs)], scores[len(pairs) :]
        accuracies[card.name] = accuracy(chosen, rejected)
        differences[card.name] = np.asarray(chosen) - np.asarray(rejected)
    accuracies["(longer wins)"] = accuracy(*([float(len(text[side])) for text in texts] for side in (1, 2)))
    generator = np.random.default_rng(seed)
    accuracies["(coin)"] = accuracy(*generator.random((2, len(pairs))).tolist())
    resamples = generator.integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    correlation = {
        (a, b): _rank_correlation(differences[a], differences[b], resamples)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }
    return Agreement(accuracies, correlation)


def _rank_correlation(a: np.ndarray, b: np.ndarray, resamples: np.ndarray) -> tuple[float, float, float]:
    """Spearman's ρ with its 95% percentile-bootstrap interval; nan if one side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan"), float("nan"), float("nan")
    resampled = []
    for rows in resamples:
        if np.ptp(a[rows]) > 0 and np.ptp(b[rows]) > 0:
            resampled.append(spearmanr(a[rows], b[rows]).statistic)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(spearmanr(a, b).statistic), float(low), float(high)


def read_texts(path: Path) -> list[dict[str, Any]]:
    """Rows with `prompt` and `response` from a JSON Lines file. Raises UsageError if a key or all rows are missing."""
    rows = []
    for number, row in read_rows(path):
        for key in ("prompt", "response"):
            text_at(row, key, f"{path}: line {number}")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path}: holds no responses")
    return rows
