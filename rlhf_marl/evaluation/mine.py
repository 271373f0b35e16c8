"""Preference pairs from a run: junk that its reward models liked, against the base model's answers."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_marl.config import Config
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.metrics import distinct, words
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.loading import default_device
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.runs.directory import RunDirectory
from rlhf_marl.training.build import Agents, build_agents

_FEW_PAIRS = 0.8  # share of distinct word pairs; an answer with fewer repeats itself
_UNLIKELY = 0.05  # quantile of the answers that the base model samples: a less likely answer is not fluent
_TOKENS = 64  # of the base model's answers: enough for a whole sentence
_BATCH = 16
_SENTENCES = re.compile(r".*[^\s\d][.!?](?=\s|$)", re.DOTALL)  # "1." begins a point of a list
_ENOUGH = 3  # words that a base answer needs


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a reward model scored.

    Attributes:
        agent: whose reward model.
    """

    prompt: str
    text: str
    agent: int
    iteration: int
    reward: float


def mine(path: Path, *, top: float, limit: int) -> list[dict[str, Any]]:
    """Pairs of the base model's answer (chosen) and an agent's junk (rejected) to the same prompt.

    An answer is junk if it repeats itself (under 80% of its word pairs are distinct), or if the base model finds it
    less likely, by token, than 95% of the answers that it samples to these prompts.

    Args:
        top: share of each agent's answers that is looked at: those that its reward model scored highest.
        limit: at most so many of them by agent.

    Returns:
        Rows with prompt, chosen, rejected, junk (`repeats` or `unlikely`), agent, iteration and reward_scaled.

    Raises:
        UsageError: not a run, or one without finished dialogues or recorded rewards.
    """
    run, config = RunDirectory.open(path, "reward mine")
    turns = read_jsonl(run.dialogues) if run.dialogues.is_file() else []
    if not turns:
        raise UsageError(f"reward mine: {str(path)!r} has no finished dialogues yet")
    answers = [
        answer
        for agent in range(len(config.agents))
        for answer in best(_scored(turns, agent, of=config.reward.of), top=top, limit=limit)
    ]
    if not answers:
        if all(reward is None for turn in turns for reward in turn["reward_scaled"]):
            raise UsageError(f"reward mine: {str(path)!r} has no recorded rewards (runtime.private_rewards)")
        return []
    with fits_into_memory("reward mine"):
        agents = build_agents(config.over_reference_model(), str(path), default_device(), start=False)
        prompts = list(dict.fromkeys(answer.prompt for answer in answers))
        own, likelihoods = _base_answers(agents, config, prompts)
        least = float(np.quantile(likelihoods, _UNLIKELY))
        likely = _log_probabilities(agents, config, [(answer.prompt, answer.text) for answer in answers])
    chosen = dict(zip(prompts, own, strict=True))
    rows = []
    for answer, log_probability in zip(answers, likely, strict=True):
        junk = "repeats" if repeats(answer.text) else "unlikely" if log_probability < least else None
        fluent = whole_sentences(chosen[answer.prompt])
        if junk and len(words(fluent)) >= _ENOUGH and not repeats(fluent):
            rows.append(
                {
                    "prompt": answer.prompt,
                    "chosen": fluent,
                    "rejected": answer.text,
                    "junk": junk,
                    "agent": answer.agent,
                    "iteration": answer.iteration,
                    "reward_scaled": answer.reward,
                }
            )
    return rows


def _scored(turns: Sequence[dict[str, Any]], agent: int, of: str) -> Iterator[Answer]:
    """What the agent's reward model scored: the team's answers, or else its own."""
    for turn in turns:
        text = turn["aggregate"] if of == "team" else turn["responses"][agent]["text"]
        reward = turn["reward_scaled"][agent]
        if reward is not None:  # it is private, or the agent was lost
            yield Answer(turn["prompt"], text, agent, turn["iteration"], reward)


def best(answers: Iterator[Answer], *, top: float, limit: int) -> list[Answer]:
    """The share `top` (rounded up) of the different non-empty answers, by reward, best first, and at most `limit`."""
    different = {(answer.prompt, answer.text): answer for answer in answers if answer.text.strip()}
    ranked = sorted(different.values(), key=lambda answer: -answer.reward)
    return ranked[: min(limit, math.ceil(top * len(ranked)))]


def repeats(text: str) -> bool:
    """Whether fewer than 80% of the text's word pairs are distinct."""
    return distinct(text, 2) < _FEW_PAIRS


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if it has none."""
    found = _SENTENCES.match(text)
    return found.group().strip() if found else ""


def _base_answers(agents: Agents, config: Config, prompts: Sequence[str]) -> tuple[list[str], list[float]]:
    """The base model's most likely answer to each prompt; and how likely, by token, are answers that it samples.

    The sampled ones have the agents' temperature and token limit, so that their likelihood compares with the agents'.
    """
    texts, likely = [], []
    for start in range(0, len(prompts), _BATCH):
        states = [_state(agents, config, prompt) for prompt in prompts[start : start + _BATCH]]
        greedy = agents.sampler.sample(states, (), max_new_tokens=_TOKENS, temperature=0.0, agents=None)
        texts += [sample.text for sample in greedy]
        sampled = agents.sampler.sample(
            states,
            [SamplingKey(config.seed, 0, start + place, 0) for place in range(len(states))],
            max_new_tokens=config.generation.max_new_tokens,
            temperature=config.generation.temperature,
            agents=None,
        )
        likely += [sum(sample.log_probabilities) / len(sample.tokens) for sample in sampled]
    return texts, likely


def _log_probabilities(agents: Agents, config: Config, answers: Sequence[tuple[str, str]]) -> list[float]:
    """Mean log-probability by token of answers under the base model, in nats."""
    likely = []
    for start in range(0, len(answers), _BATCH):
        rows = answers[start : start + _BATCH]
        states = [_state(agents, config, prompt) for prompt, _ in rows]
        tokens = [agents.chat_model.tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in rows]
        statistics = evaluate_responses(
            agents.chat_model.model,
            agents.adapters,
            [states],
            [tokens],
            temperature=config.generation.temperature,
            pad=agents.chat_model.stop_tokens[0],
            agents=None,
        )
        likely += [float(total) / len(row) for total, row in zip(statistics.log_probability[0], tokens, strict=True)]
    return likely


def _state(agents: Agents, config: Config, prompt: str) -> list[int]:
    message = Message(role="user", content=prompt)
    return chat_tokens(agents.chat_model.tokenizer, [message], config.generation.max_prompt_tokens)
