"""Junk derived from fluent answers: negatives for training, and for the gate."""

import random
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from rlhf_marl.policy.chat import Message
from rlhf_marl.rewards.preferences import Pair

_SHORTEST = 8  # words; a shorter answer has no half that is clearly cut, and no order that is clearly lost
_PHRASE = 4  # words that a repeated answer says over and over


def echo(question: str, words: Sequence[str], generator: random.Random) -> str:
    """The question, given back as the answer."""
    return question


def cut(question: str, words: Sequence[str], generator: random.Random) -> str:
    """The answer up to a word between its third and its last tenth, within a sentence, without a mark at the end."""
    kept = generator.randint(len(words) // 3, len(words) * 9 // 10)
    while kept > 1 and words[kept - 1][-1] in ".!?":  # a whole sentence less is no cut
        kept -= 1
    return " ".join(words[:kept]).rstrip(".,;:!?")


def repeated(question: str, words: Sequence[str], generator: random.Random) -> str:
    """A phrase of the answer, over and over to the answer's length."""
    start = generator.randrange(len(words) - _PHRASE + 1)
    return " ".join(islice(cycle(words[start : start + _PHRASE]), len(words)))


def shuffled(question: str, words: Sequence[str], generator: random.Random) -> str:
    """The answer's words in random order."""
    return " ".join(generator.sample(words, len(words)))


DERIVED: dict[str, Callable[[str, Sequence[str], random.Random], str]] = {
    "echo": echo,
    "cut": cut,
    "repeated": repeated,
    "shuffled": shuffled,
}


def derive(pairs: Sequence[Pair], kind: str, seed: int = 0) -> list[Pair]:
    """Each pair's chosen answer against junk of this kind made from it.

    Pairs whose chosen side is shorter than eight words or more than one message give none.
    """
    generator = random.Random(seed)
    found = []
    for pair in pairs:
        words = pair.chosen[-1]["content"].split()
        if len(pair.chosen) == 1 and len(words) >= _SHORTEST:
            text = DERIVED[kind](pair.prompt[-1]["content"], words, generator)
            found.append(Pair(pair.prompt, pair.chosen, [Message(role="assistant", content=text)], junk=kind))
    return found


def derive_in_turn(pairs: Sequence[Pair], kinds: Sequence[str], seed: int = 0) -> list[Pair]:
    """One pair per chosen answer; the kinds take turns."""
    return [pair for place, kind in enumerate(kinds) for pair in derive(pairs[place :: len(kinds)], kind, seed)]
