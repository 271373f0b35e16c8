"""Text metrics of responses; pure functions."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

Gram = tuple[str, ...]
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def grams(text: str, n: int) -> list[Gram]:
    """Word n-grams in order; a text of fewer than n words is one gram."""
    tokens = words(text)
    return [tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))]


def distinct(text: str, n: int) -> float:
    """distinct-n: share of different n-grams among all n-grams; 0 for a response without words."""
    if not words(text):
        return 0.0
    found = grams(text, n)
    return len(set(found)) / len(found)


def self_repetition(dialogues: Sequence[Sequence[str]], n: int = 4) -> list[list[float]]:
    """Share of each response's n-grams that the same speaker also says in another dialogue: [dialogue][turn].

    It is 1 if an agent always gives the same answer, which distinct-n does not see.
    """
    in_dialogues: Counter[Gram] = Counter()
    for texts in dialogues:
        in_dialogues.update({gram for text in texts for gram in grams(text, n)})
    return [
        [sum(in_dialogues[gram] > 1 for gram in found) / len(found) for found in (grams(text, n) for text in texts)]
        for texts in dialogues
    ]


def agreement(responses: Sequence[str]) -> float:
    """Mean Jaccard overlap of word sets over all pairs of at least two responses."""
    sets = [set(words(text)) for text in responses]
    overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return sum(overlaps) / len(overlaps)
