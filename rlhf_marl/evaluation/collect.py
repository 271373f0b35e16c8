"""Dialogues on the held-out questions, by the base model and by the trained agents, with the same random numbers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rlhf_marl.dialogue.controller import Controller
from rlhf_marl.dialogue.player import Dialogue, Player, Turn, responses_of
from rlhf_marl.dialogue.speakers import Decoding
from rlhf_marl.evaluation.judges import PairwiseJudge, Scorer
from rlhf_marl.evaluation.questions import Question
from rlhf_marl.evaluation.refusal import is_refusal
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.log_probabilities import Statistics, evaluate_responses, joined
from rlhf_marl.rewards import DataRow, score_all
from rlhf_marl.sanitise import neutralise
from rlhf_marl.training.build import Agents

_BATCH = 16  # dialogues played together
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are sampled, by both policies."""

    seed: int
    max_prompt_tokens: int
    decodings: Sequence[Decoding]


def collect(
    agents: Agents,
    controller: Controller,
    sampling: Sampling,
    questions: Sequence[Question],
    turns: int,
) -> Iterator[Row]:
    """Play every question with the base model and with the trained agents: rows, base first, without scores.

    Both sample token t of agent i in dialogue b, turn k with the same random number.

    Args:
        turns: of questions without follow-ups; the controller writes the prompts after the first.
    """
    for policy in ("base", "trained"):
        respond = partial(
            responses_of,
            agents.sampler,
            seed=sampling.seed,
            decodings=sampling.decodings,
            adapted=policy == "trained",
        )
        player = Player(respond, controller, agents.chat_model.tokenizer, sampling.max_prompt_tokens, agents.speakers)
        for turn in played(player, questions, turns):
            statistics = [
                evaluate_responses(
                    agents.chat_model.model,
                    agents.adapters,
                    turn.observations[group.agents],
                    turn.tokens[group.agents],
                    temperature=group.temperature,
                    pad=agents.chat_model.stop_tokens[0],
                    agents=None if policy == "base" else group.agents,
                )
                for group in sampling.decodings
            ]
            yield from _rows(agents, turn, questions, policy, joined(statistics))


def played(player: Player, questions: Sequence[Question], turns: int, first: int = 0) -> Iterator[Turn]:
    """The turns of the questions' dialogues; dialogue `first` + n asks question n."""
    for start in range(0, len(questions), _BATCH):
        dialogues = [
            Dialogue(first + n, n, [Message(role="user", content=q.prompt)], n_turns(q, turns), q.follow_ups)
            for n, q in list(enumerate(questions))[start : start + _BATCH]
        ]
        yield from player.play(dialogues)


def n_turns(question: Question, turns: int) -> int:
    """How many turns a question's dialogue has."""
    return len(question.follow_ups) + 1 if question.follow_ups else turns


def _rows(
    agents: Agents, turn: Turn, questions: Sequence[Question], policy: str, statistics: Statistics
) -> Iterator[Row]:
    """One row per dialogue of a turn."""
    for b, (number, merged) in enumerate(zip(turn.dialogues, turn.merged, strict=True)):
        samples = [agent[b] for agent in turn.samples]
        aggregate = agents.chat_model.tokenizer(merged.aggregate, add_special_tokens=False)["input_ids"]
        yield {
            "policy": policy,
            "question": questions[number].id,
            "kind": questions[number].kind,
            "dialogue": number,
            "turn": turn.number,
            "prompt": turn.prompts[b],
            "prompt_tokens": turn.lengths[b],
            "responses": [sample.text for sample in samples],
            "tokens": [len(sample.tokens) for sample in samples],
            "truncated": [not sample.finished for sample in samples],
            "refused": [is_refusal(sample.text) for sample in samples],
            "entropy": statistics.entropy[:, b].tolist(),
            "kl": [float(sum_) / len(s.tokens) for sum_, s in zip(statistics.kl[:, b], samples, strict=True)],
            "scores": {},
            "aggregate": merged.aggregate,
            "aggregate_tokens": len(aggregate),
            "aggregate_refused": is_refusal(merged.aggregate),
            "aggregate_scores": {},
            "next_prompt": merged.next_prompt,
            "fallbacks": int(merged.fallback),
        }


def conversations(rows: Sequence[Row], dialogue: Sequence[str] = ("policy", "dialogue")) -> list[list[Message]]:
    """The messages up to each row's prompt, from the first prompt on; rows of a dialogue are in order.

    dialogue: the keys that tell dialogues apart.
    """
    going: dict[tuple[Any, ...], list[Message]] = {}
    found = []
    for row in rows:
        messages = going.setdefault(tuple(row[key] for key in dialogue), [])
        messages.append(Message(role="user", content=row["prompt"]))
        found.append(list(messages))
        messages.append(Message(role="assistant", content=neutralise(row["aggregate"])))
    return found


@torch.inference_mode()
def score(rows: Sequence[Row], scorer: Scorer, columns: Mapping[Any, DataRow]) -> None:
    """Add the scorer's scaled score of every response and of every aggregate to the rows, at least one.

    columns: further columns of each question, by the value of the rows' key `question`.
    """
    asked = conversations(rows) if scorer.card.reads_dialogue else [row["prompt"] for row in rows]
    cases = [
        (prompt, text, row["question"])
        for prompt, row in zip(asked, rows, strict=True)
        for text in (*row["responses"], row["aggregate"])
    ]
    # Equal texts are scored once: in another batch the last digits differ, and a tie would be a win.
    keys = [json.dumps(case) for case in cases]
    different = dict(zip(keys, cases, strict=True))
    prompts, texts, questions = zip(*different.values(), strict=True)
    given = [columns[question] for question in questions]
    found = dict(zip(different, score_all(scorer.card, scorer.model, prompts, texts, rows=given)[1], strict=True))
    scaled = iter([found[key] for key in keys])
    for row in rows:
        row["scores"][scorer.name] = [next(scaled) for _ in row["responses"]]
        row["aggregate_scores"][scorer.name] = next(scaled)


def compare_pairs(rows: Sequence[Row], judge: PairwiseJudge) -> None:
    """Add the pairwise judge's preference between base and trained answers to the trained rows.

    Only turns with the same prompt in both dialogues are judged. Where the controller wrote different prompts, the
    trained row gets no preference.
    """
    base = {(row["question"], row["turn"]): row for row in rows if row["policy"] == "base"}
    trained = [row for row in rows if row["policy"] == "trained"]
    same = [row for row in trained if base[row["question"], row["turn"]]["prompt"] == row["prompt"]]
    prompts, before, after = [], [], []
    for row in same:
        other = base[row["question"], row["turn"]]
        for a, b in zip((*other["responses"], other["aggregate"]), (*row["responses"], row["aggregate"]), strict=True):
            prompts.append(row["prompt"])
            before.append(a)
            after.append(b)
    found = judge.compare(prompts, before, after)
    preferred, consistent = iter(found[0]), iter(found[1])
    for row in same:
        row["preferred"] = [next(preferred) for _ in (*row["responses"], "team")]
        row["consistent"] = [next(consistent) for _ in (*row["responses"], "team")]
