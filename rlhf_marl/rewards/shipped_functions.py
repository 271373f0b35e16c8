"""Functions that shipped cards point to: scorers from packages that bring their own model or lexicon."""

from functools import cache
from typing import Any

from rlhf_marl.errors import UsageError


def vader_sentiment(prompts: list[str], responses: list[str]) -> list[float]:
    """VADER's compound sentiment of each response, in [-1, 1]."""
    analyzer = _vader()
    return [analyzer.polarity_scores(text)["compound"] for text in responses]


def clean_language(prompts: list[str], responses: list[str]) -> list[float]:
    """1 - probability that a response is profane, by a linear model trained on human labels, in [0, 1]."""
    return [1.0 - float(p) for p in _profanity_probability()(responses)]


@cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise UsageError("this reward model needs vaderSentiment: pip install vaderSentiment") from None
    return SentimentIntensityAnalyzer()


@cache
def _profanity_probability() -> Any:
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise UsageError("this reward model needs alt-profanity-check: pip install alt-profanity-check") from None
    return predict_prob
