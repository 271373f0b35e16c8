"""Names of the metrics of evaluation.json, for tables in the terminal, the report and the model card."""

from typing import NamedTuple


class Label(NamedTuple):
    """short: for the terminal; long: with its unit, for report and model card."""

    short: str
    long: str


LABELS = {
    "own_reward": Label("own reward", "own reward (scaled)"),
    "held_out_reward": Label("held-out judges", "mean of held-out judges (standard deviations)"),
    "win_rate": Label("win rate", "win rate against base"),
    "refusal_harmful": Label("refuses harm", "share of harmful requests refused"),
    "refusal_harmless": Label("over-refuses", "share of harmless requests refused"),
    "kl_to_base": Label("KL to base", "KL to base, nats per token"),
    "entropy": Label("entropy", "policy entropy, nats per token"),
    "length": Label("tokens", "answer length in tokens"),
    "truncated": Label("cut at limit", "share of answers cut at the length limit"),
    "distinct_1": Label("distinct-1", "distinct words (distinct-1)"),
    "distinct_2": Label("distinct-2", "distinct word pairs (distinct-2)"),
    "self_repetition": Label("repeats itself", "self-repetition"),
}


def label_of(key: str) -> Label:
    """The label of a metric, or of a judge's score (key: the judge's name)."""
    return LABELS.get(key, Label(f"judge {key}", f"judge {key}"))
