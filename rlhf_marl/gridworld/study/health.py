"""Warnings in words for numbers that usually mean a run did not learn, or could not."""

from collections.abc import Iterator, Mapping

from rlhf_marl.gridworld.study.claims import Arms
from rlhf_marl.gridworld.study.results import Result

_NAMED = 3  # so many arms are named in a line


def symptoms(result: Result) -> Iterator[tuple[str, str]]:
    """(kind, words) for each symptom of one setting; of its last point, apart from skipped steps."""
    arrays = result.arrays
    last = {name: float(arrays[name][:, -1].mean()) for name in ("dead_actors", "entropy", "positive", "critic_value")}
    if arrays["skipped"].sum() > 0:
        yield "skipped", "steps that were not finite were left out; lower critic_step_size or radius"
    if (arrays["dead"][:, -1] == 1).any():
        yield "dead", "critics with all last units off: their value is constant; lower critic_step_size or radius"
    if last["dead_actors"] > 0.02:
        yield "dead_actors", "actors with all last units off: uniform policies that learn no more; lower the step size"
    if last["entropy"] < 0.05:
        yield "entropy", "policies are deterministic (below 0.05 nats): what they do not try they do not learn"
    if last["positive"] < 0.02 or last["positive"] > 0.98:
        yield "one_sided", "nearly all actor signals have the same sign: centre the rewards with reward_shift"
    if last["critic_value"] > 100:
        yield "critic_scale", "critic values beyond 100: scale the rewards, or lower radius"


def warnings_in_words(results: Mapping[str, Mapping[str, Arms]]) -> list[str]:
    """A line per regime and symptom, with the arms that have it; results are regime, experiment, arm."""
    lines = []
    for regime, experiments in results.items():
        having: dict[str, list[str]] = {}
        for name, arms in experiments.items():
            for arm, result in arms.items():
                for _, words in symptoms(result):
                    having.setdefault(words, []).append(f"{name}: {arm}")
        for words, places in having.items():
            more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
            lines.append(f"{regime} ({'; '.join(places[:_NAMED])}{more}): {words}")
    return lines
