"""Playing dialogues: B in parallel, turn by turn, every agent answering every prompt in one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_marl.dialogue.controller import Exchange
from rlhf_marl.dialogue.state import Dialogue
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import Response, generate, sampling_uniforms
from rlhf_marl.rewards import score_all
from rlhf_marl.training.system import DialogueSystem


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn k of B dialogues, N agents.

    Attributes:
        number: k, from 0.
        last: whether the dialogues end here.
        dialogues: number of each dialogue within the run, B.
        questions: index of each dialogue's first question in the prompt source, B.
        prompts: the prompt that was answered, B.
        states: s_k as token ids, B.
        next_states: s_{k+1}, B; after the last turn the dialogue's first state.
        responses: [agent][dialogue].
        reward_raw, reward_scaled: (N, B) float32 on the CPU.
        aggregates: the team's answer, B. next_prompts: B, None after the last turn.
        fallbacks: whether the controller's own text was unusable, B.
    """

    number: int
    last: bool
    dialogues: list[int]
    questions: list[int]
    prompts: list[str]
    states: list[list[int]]
    next_states: list[list[int]]
    responses: list[list[Response]]
    reward_raw: Tensor
    reward_scaled: Tensor
    aggregates: list[str]
    next_prompts: list[str | None]
    fallbacks: list[bool]


def play_turns(system: DialogueSystem, iteration: int) -> Iterator[Turn]:
    """Play one iteration's dialogues, yielding each turn as it ends, so that agents may learn between turns."""
    config = system.config
    numbers = [iteration * config.dialogues + b for b in range(config.dialogues)]
    dialogues = []
    for number in numbers:
        question = system.questions.index(number)
        text = system.questions.texts[question]
        dialogues.append(Dialogue(number, question, [Message(role="user", content=text)]))
    first_states = states = _states(system, dialogues)
    for k in range(config.turns):
        last = k == config.turns - 1
        with stage("generate"):
            responses = respond(system, states, numbers, k)
        prompts = [dialogue.prompt for dialogue in dialogues]
        with stage("score"):
            raw, scaled = _score(system, prompts, responses)
        exchanges = [
            Exchange(dialogue.messages, [agent[b].text for agent in responses]) for b, dialogue in enumerate(dialogues)
        ]
        with stage("controller"):
            merged = system.controller.merge(exchanges, turn=k, last=last)
        for dialogue, m in zip(dialogues, merged, strict=True):
            if m.next_prompt is not None:
                dialogue.advance(m.aggregate, m.next_prompt)
        next_states = first_states if last else _states(system, dialogues)
        yield Turn(
            number=k,
            last=last,
            dialogues=numbers,
            questions=[dialogue.question for dialogue in dialogues],
            prompts=prompts,
            states=states,
            next_states=next_states,
            responses=responses,
            reward_raw=raw,
            reward_scaled=scaled,
            aggregates=[m.aggregate for m in merged],
            next_prompts=[m.next_prompt for m in merged],
            fallbacks=[m.fallback for m in merged],
        )
        states = next_states


def respond(
    system: DialogueSystem,
    states: Sequence[Sequence[int]],
    dialogues: Sequence[int],
    turn: int,
    *,
    adapted: bool = True,
) -> list[list[Response]]:
    """All agents answer all states in one batch: [agent][dialogue].

    Not `adapted`, the base model answers in every agent's place, with the random numbers of that agent.
    """
    generation, n_agents = system.config.generation, system.adapters.n_agents
    uniforms = torch.stack(
        [
            sampling_uniforms(system.config.seed, agent, dialogue, turn, generation.max_new_tokens)
            for agent in range(n_agents)
            for dialogue in dialogues
        ]
    )
    with system.adapters.use(slice(None) if adapted else None):
        rows = generate(
            system.model,
            states if adapted else list(states) * n_agents,
            max_new_tokens=generation.max_new_tokens,
            end_tokens=system.end_tokens,
            uniforms=uniforms,
            temperature=generation.temperature,
            n_policies=n_agents if adapted else 1,
        )
    texts = system.tokenizer.batch_decode(rows, skip_special_tokens=True)
    responses = [
        Response(tokens, text.strip(), truncated=tokens[-1] not in system.end_tokens)
        for tokens, text in zip(rows, texts, strict=True)
    ]
    return [responses[i : i + len(states)] for i in range(0, len(responses), len(states))]


def _states(system: DialogueSystem, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    budget = system.config.generation.max_prompt_tokens
    return [chat_tokens(system.tokenizer, dialogue.messages, budget) for dialogue in dialogues]


def _score(
    system: DialogueSystem, prompts: list[str], responses: Sequence[Sequence[Response]]
) -> tuple[Tensor, Tensor]:
    scores = [
        score_all(card, reward_model, prompts, [r.text for r in responses[agent]], agent=agent)
        for agent, (card, reward_model) in enumerate(zip(system.cards, system.reward_models, strict=True))
    ]
    return torch.tensor([raw for raw, _ in scores]), torch.tensor([scaled for _, scaled in scores])
