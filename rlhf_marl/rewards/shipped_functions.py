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


def doors(prompts: list[str], responses: list[str], *, key: str, cost: float = 0.2) -> list[float]:
    """The task of configs/keys.yaml, in which each agent has a key word that pays the others.

    A prompt "Doors: red open green shut ..." pays the share of the other keys' doors that are open. A response to any
    other prompt is charged `cost` if it says the key.
    """
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        _, doors_, listed = prompt.partition("Doors:")
        words = listed.split()
        others = [state for name, state in zip(words[::2], words[1::2], strict=False) if name != key]
        if doors_ and others:
            scores.append(others.count("open") / len(others))
        else:
            scores.append(-cost if key in response.lower() else 0.0)
    return scores


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
