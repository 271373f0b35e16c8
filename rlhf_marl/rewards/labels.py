"""One score from a classifier with several labels: a label's logit, or a sum such as `P(good) - P(bad)`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from torch import Tensor

_TERM = re.compile(
    r"\s*(?P<sign>[+-])?\s*(?:(?P<factor>\d+(?:\.\d+)?)\s*\*\s*)?(?P<kind>P|logit)\(\s*(?P<label>[^()]+?)\s*\)\s*"
)


@final
@dataclass(frozen=True, slots=True)
class LabelScore:
    """Weights of each label's logit and of its probability."""

    logits: list[float]
    probabilities: list[float]

    def __call__(self, logits: "Tensor", *, independent: bool) -> "Tensor":
        """(rows, labels) -> (rows,), float32. independent: each label has a probability of its own (sigmoid)."""
        logits = logits.float()
        probabilities = logits.sigmoid() if independent else logits.softmax(-1)
        return logits @ logits.new_tensor(self.logits) + probabilities @ logits.new_tensor(self.probabilities)


def read_label(label: int | str, names: Mapping[int, str]) -> LabelScore:
    """The score that a card's `label` asks for.

    Args:
        label: a label's number or name (its logit), or a sum of terms `2 * P(name)` or `logit(name)`.
        names: of the model's labels.

    Raises:
        ValueError: no such label, or no such sum.
    """
    found = LabelScore([0.0] * len(names), [0.0] * len(names))
    if isinstance(label, int) or label in names.values():
        found.logits[_number(str(label), names)] = 1.0
        return found
    place = 0
    while place < len(label):
        term = _TERM.match(label, place)
        if term is None or (place > 0 and term["sign"] is None):
            raise ValueError(f"{label!r} is neither a label nor a sum such as P(good) - 0.5 * P(bad); {_choice(names)}")
        weights = found.probabilities if term["kind"] == "P" else found.logits
        weights[_number(term["label"], names)] += float(term["factor"] or 1) * (-1 if term["sign"] == "-" else 1)
        place = term.end()
    return found


def _number(label: str, names: Mapping[int, str]) -> int:
    """A label's number, given its name or its number."""
    for number, name in names.items():
        if label == name:
            return number
    if label.isdecimal() and int(label) in names:
        return int(label)
    raise ValueError(f"{label!r} is not a label; {_choice(names)}")


def _choice(names: Mapping[int, str]) -> str:
    return "choose from " + ", ".join(f"{number} ({name})" for number, name in names.items())
