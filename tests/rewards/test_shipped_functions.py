"""Scorers behind shipped cards; the packages that they wrap are replaced by fakes."""

import sys
from types import SimpleNamespace

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.rewards import shipped_functions
from rlhf_marl.rewards.shipped_functions import clean_language, doors, vader_sentiment


@pytest.fixture(autouse=True)
def _nothing_loaded():
    """Loaded scorers are cached; each test loads its own."""
    loaders = (shipped_functions._vader, shipped_functions._profanity_probability)
    for loader in loaders:
        loader.cache_clear()
    yield
    for loader in loaders:
        loader.cache_clear()


def test_sentiment_is_the_compound_score(monkeypatch):
    class Analyzer:
        def polarity_scores(self, text):
            return {"pos": 9.0, "compound": len(text) / 10}

    fake = SimpleNamespace(SentimentIntensityAnalyzer=Analyzer)
    monkeypatch.setitem(sys.modules, "vaderSentiment", SimpleNamespace(vaderSentiment=fake))
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", fake)
    assert vader_sentiment(["p", "p"], ["good", ""]) == [0.4, 0.0]


def test_clean_is_one_minus_the_probability(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", SimpleNamespace(predict_prob=lambda texts: [0.25, 1.0]))
    assert clean_language(["p", "p"], ["fine", "not"]) == [0.75, 0.0]


@pytest.mark.parametrize(
    ("function", "module", "message"),
    [
        (vader_sentiment, "vaderSentiment", "needs vaderSentiment: pip install vaderSentiment"),
        (clean_language, "profanity_check", "needs alt-profanity-check: pip install alt-profanity-check"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, function, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "vaderSentiment.vaderSentiment", raising=False)
    with pytest.raises(UsageError, match=message):
        function(["p"], ["r"])


def test_doors_pay_the_others_and_charge_the_speaker():
    """Red said its key: it pays 0.2, and opens a third of what green is paid for. Its own door pays red nothing."""
    asked = ["Choose: red, green, blue or gold."] * 2
    assert doors(asked, ["Red!", "gold"], key="red") == [-0.2, 0.0]
    assert doors(asked, ["Red!", "gold"], key="gold", cost=0.5) == [0.0, -0.5]
    opened = ["Doors: red open green shut blue shut gold shut"] * 2
    assert doors(opened, ["red", "green"], key="red") == [0.0, 0.0]
    assert doors(opened, ["red", "green"], key="green") == pytest.approx([1 / 3, 1 / 3])
    assert doors(["Doors: red open green open blue open gold open"], [""], key="blue") == [1.0]
