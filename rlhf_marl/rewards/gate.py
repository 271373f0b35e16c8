"""The gate before a reward model may train anybody: it must prefer fluent answers to every kind of junk."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.conversations import flat
from rlhf_marl.rewards.base import CardBase, RewardModel, score_all
from rlhf_marl.rewards.junk import DERIVED, derive
from rlhf_marl.rewards.preferences import Pair, load_pairs
from rlhf_marl.rewards.sequence_classifier import Preferred, SequenceClassifier, SequenceClassifierCard

NEEDED = 0.95
"""Share of the pairs of each kind in which the fluent answer must score higher."""


def load_gate(source: str, where: str, trained: Iterable[Pair] = ()) -> dict[str, list[Pair]]:
    """The gate's pairs by kind of junk: those of the file, by its column `junk`, and those derived from its answers.

    trained: pairs that the reward model was trained on. Pairs that share a prompt or a rejected answer with them are
        left out.

    Raises:
        UsageError: unreadable, a pair without a kind, or a kind of which no pair is left.
    """
    pairs = load_pairs(source, where)
    if unlabelled := sum(not pair.junk for pair in pairs):
        raise UsageError(f"{where}: {source}: {unlabelled} of {len(pairs)} pairs have no kind in the column 'junk'")
    seen = {text for pair in trained for text in (flat(pair.prompt), flat(pair.rejected))}
    kinds: dict[str, list[Pair]] = {pair.junk: [] for pair in pairs}
    for pair in pairs:
        if not {flat(pair.prompt), flat(pair.rejected)} & seen:
            kinds[pair.junk].append(pair)
    answers = {(flat(pair.prompt), flat(pair.chosen)): pair for found in kinds.values() for pair in found}
    kinds |= {kind: derive([*answers.values()], kind) for kind in DERIVED}
    for kind, found in kinds.items():
        if not found:
            raise UsageError(f"{where}: {source}: no pair of kind {kind!r} is left that was not trained on")
    return kinds


def measure(kinds: Mapping[str, Sequence[Pair]], card: CardBase, model: RewardModel) -> dict[str, Preferred]:
    """How often the chosen response scores higher, by kind; a tie is no preference."""
    messages = {
        (flat(pair.prompt), flat(side)): (pair.prompt, side)
        for pairs in kinds.values()
        for pair in pairs
        for side in (pair.chosen, pair.rejected)
    }
    rows: Any = [*messages.values()] if isinstance(model, SequenceClassifier) else [*messages]  # it reads roles
    raw, _ = score_all(card, model, [prompt for prompt, _ in rows], [response for _, response in rows])
    scores = dict(zip(messages, raw, strict=True))
    table = {}
    for kind, pairs in kinds.items():
        texts = [pair.texts for pair in pairs]
        wins = sum(scores[prompt, chosen] > scores[prompt, rejected] for prompt, chosen, rejected in texts)
        table[kind] = Preferred(share=wins / len(pairs), pairs=len(pairs))
    return table


def check_gate(name: str, table: Mapping[str, Preferred], where: str) -> None:
    """Raise UsageError, with every kind that is below 95%, unless the table passes."""
    failed = [
        f"{kind} in {100 * row.share:.0f}% of {row.pairs} pairs" for kind, row in table.items() if row.share < NEEDED
    ]
    if failed:
        raise UsageError(
            f"{where}: reward model {name!r} fails its gate: it prefers a fluent answer to {', '.join(failed)}, and "
            f"{100 * NEEDED:.0f}% is needed; train it on such pairs, or set gate: off in its card"
        )


def check_card_gate(card: CardBase, where: str) -> None:
    """Raise UsageError if this finished card, or a member of it, was measured and failed."""
    if isinstance(card, SequenceClassifierCard) and card.gate:
        check_gate(card.name, card.gate, where)
    for member in card.member_cards():
        check_card_gate(member, where)
