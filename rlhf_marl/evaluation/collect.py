"""Dialogues on the held-out questions, by the base model and by the trained agents, from the same random numbers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_marl.dialogue.controller import Exchange, Merged
from rlhf_marl.dialogue.player import respond
from rlhf_marl.dialogue.state import Dialogue
from rlhf_marl.evaluation.judges import PairwiseJudge, Scorer
from rlhf_marl.evaluation.questions import Question
from rlhf_marl.evaluation.refusal import is_refusal
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import Response
from rlhf_marl.policy.log_probabilities import base_entropy, evaluate_responses
from rlhf_marl.rewards import score_all
from rlhf_marl.training.system import DialogueSystem

_BATCH = 16  # dialogues played together
Row = dict[str, Any]


def collect(
    system: DialogueSystem, questions: Sequence[Question], turns: int, done: Callable[[int], None]
) -> list[Row]:
    """Play every question with the base model and with the trained agents: rows, base first, without scores.

    Both draw token t of agent i in dialogue b, turn k with the same random number.

    Args:
        turns: of questions without follow-ups; the controller writes the prompts after the first.
        done: receives how many more turns of dialogues have been played.
    """
    rows: list[Row] = []
    for policy in ("base", "trained"):
        for start in range(0, len(questions), _BATCH):
            batch = range(start, min(start + _BATCH, len(questions)))
            rows += _play(system, questions, batch, turns, policy, done)
    return rows


def n_turns(question: Question, turns: int) -> int:
    """How many turns a question's dialogue has."""
    return len(question.follow_ups) + 1 if question.follow_ups else turns


def _play(
    system: DialogueSystem,
    questions: Sequence[Question],
    numbers: Sequence[int],
    turns: int,
    policy: str,
    done: Callable[[int], None],
) -> Iterator[Row]:
    """One batch of dialogues, turn by turn."""
    active = [Dialogue(n, n, [Message(role="user", content=questions[n].prompt)]) for n in numbers]
    turn = 0
    while active:
        budget = system.config.generation.max_prompt_tokens
        whole = [chat_tokens(system.tokenizer, dialogue.messages, 10**9) for dialogue in active]
        states = [tokens[-budget:] for tokens in whole]
        responses = respond(system, states, [dialogue.index for dialogue in active], turn, adapted=policy == "trained")
        entropy, kl = _entropy_and_kl(system, states, responses, policy)
        merged = _merge(system, [questions[d.question] for d in active], active, responses, turn, turns)
        for b, (dialogue, decided) in enumerate(zip(active, merged, strict=True)):
            answers = [agent[b] for agent in responses]
            aggregate = system.tokenizer(decided.aggregate, add_special_tokens=False)["input_ids"]
            yield {
                "policy": policy,
                "question": questions[dialogue.question].id,
                "kind": questions[dialogue.question].kind,
                "dialogue": dialogue.index,
                "turn": turn,
                "prompt": dialogue.prompt,
                "prompt_tokens": len(whole[b]),
                "responses": [answer.text for answer in answers],
                "tokens": [len(answer.tokens) for answer in answers],
                "truncated": [answer.truncated for answer in answers],
                "refused": [is_refusal(answer.text) for answer in answers],
                "entropy": entropy[:, b].tolist(),
                "kl": [float(sum_) / len(a.tokens) for sum_, a in zip(kl[:, b], answers, strict=True)],
                "scores": {},
                "aggregate": decided.aggregate,
                "aggregate_tokens": len(aggregate),
                "aggregate_refused": is_refusal(decided.aggregate),
                "aggregate_scores": {},
                "next_prompt": decided.next_prompt,
                "fallbacks": int(decided.fallback),
            }
        done(len(active))
        for dialogue, decided in zip(active, merged, strict=True):
            if decided.next_prompt is not None:
                dialogue.advance(decided.aggregate, decided.next_prompt)
        going = [d for d, decided in zip(active, merged, strict=True) if decided.next_prompt is not None]
        active, turn = going, turn + 1


def _entropy_and_kl(
    system: DialogueSystem, states: Sequence[Sequence[int]], responses: Sequence[Sequence[Response]], policy: str
) -> tuple[Tensor, Tensor]:
    """Mean entropy and KL to the base model of each response, in nats, each (N, B); the base's own KL is 0."""
    tokens = [[r.tokens for r in agent] for agent in responses]
    temperature, pad = system.config.generation.temperature, system.end_tokens[0]
    if policy == "base":
        entropy = base_entropy(system.model, system.adapters, states, tokens, temperature=temperature, pad=pad)
        return entropy, torch.zeros_like(entropy)
    statistics = evaluate_responses(system.model, system.adapters, states, tokens, temperature=temperature, pad=pad)
    return statistics.entropy, statistics.kl


def _merge(
    system: DialogueSystem,
    questions: Sequence[Question],
    dialogues: Sequence[Dialogue],
    responses: Sequence[Sequence[Response]],
    turn: int,
    turns: int,
) -> list[Merged]:
    """The controller's answers; next prompts are the question's own where it has some, else the controller's."""
    merged: dict[int, Merged] = {}
    # The controller is asked for a next prompt only where it writes one.
    writes = [not q.follow_ups and turn + 1 < turns for q in questions]
    for asked in (False, True):
        places = [b for b, write in enumerate(writes) if write == asked]
        if places:
            exchanges = [Exchange(dialogues[b].messages, [agent[b].text for agent in responses]) for b in places]
            found = system.controller.merge(exchanges, turn=turn, last=not asked)
            merged.update(zip(places, found, strict=True))
    for b, question in enumerate(questions):
        if turn < len(question.follow_ups):
            merged[b] = Merged(merged[b].aggregate, question.follow_ups[turn], merged[b].fallback)
    return [merged[b] for b in range(len(questions))]


@torch.inference_mode()
def score(rows: Sequence[Row], scorers: Sequence[Scorer], done: Callable[[int], None]) -> None:
    """Add every scorer's scaled score of every response and of every aggregate to the rows."""
    prompts = [row["prompt"] for row in rows for _ in (*row["responses"], "team")]
    texts = [text for row in rows for text in (*row["responses"], row["aggregate"])]
    for scorer in scorers:
        scaled = iter(score_all(scorer.card, scorer.model, prompts, texts)[1])
        for row in rows:
            row["scores"][scorer.name] = [next(scaled) for _ in row["responses"]]
            row["aggregate_scores"][scorer.name] = next(scaled)
        done(1)


def compare_pairs(rows: Sequence[Row], judge: PairwiseJudge) -> None:
    """Add the pairwise judge's preference between base and trained answers to the trained rows.

    Both answers are judged as answers to the trained dialogue's prompt; where the controller wrote different prompts,
    the pair is left out of the judging as a tie that says nothing about consistency.
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
