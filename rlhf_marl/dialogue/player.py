"""The dialogue loop: every agent answers; the controller merges the responses and writes the next prompt."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_marl.dialogue.controller import Controller, Exchange, Merged
from rlhf_marl.dialogue.speakers import Decoding, Speaker
from rlhf_marl.perf.stopwatch import stage
from rlhf_marl.policy.chat import Message, chat_tokens, plain_text
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.sampler import Sample, Sampler
from rlhf_marl.sanitise import neutralise

Prompts = Sequence[Sequence[Sequence[int]]]
"""Token ids that each agent reads in each dialogue, [agent][dialogue]; the same list for agents without a role."""
Respond = Callable[[Prompts, Sequence[int], int], list[list[Sample]]]
"""(what the agents read, numbers of the dialogues, turn) -> [agent][dialogue]."""


@final
@dataclass(slots=True)
class Dialogue:
    """One episode in progress; its messages are the global state s_k.

    Attributes:
        number: number within the run (or the evaluation), from 0.
        question: index of its first question in the prompt source.
        messages: alternating user prompts and aggregated answers; the last one is the prompt to answer.
        turns: number of turns to play.
        follow_ups: predefined prompts after the first; the controller writes the others.
        row: the other columns of the first question's row, for reward models that read them.
    """

    number: int
    question: int
    messages: list[Message]
    turns: int
    follow_ups: Sequence[str] = ()
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]

    def advance(self, aggregate: str, next_prompt: str) -> None:
        """The state transition: append the team's answer and the next prompt."""
        self.messages += [
            Message(role="assistant", content=neutralise(aggregate)),
            Message(role="user", content=neutralise(next_prompt)),
        ]


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """One turn k of B dialogues and N agents, with the successor data that the learners need.

    Attributes:
        number: k, from 0.
        dialogues, questions: `number` and `question` of each dialogue, B.
        prompts: the prompt that was answered, B.
        states: s_k as token ids, B.
        observations: what each agent reads: s_k after the agent's role, [agent][dialogue].
        lengths: token counts of the longest observation before truncation, B.
        samples: the responses a_k, [agent][dialogue]; those of a lost agent are absent.
        merged: the controller's output, B; a next_prompt of None ends the dialogue.
        next_states: s_{k+1}, B; after its last turn the dialogue's first state.
        reward_raw, reward_scaled: (N, B) float32 on the CPU, once the team has scored the turn; NaN for lost agents and
            where agents keep them to themselves.
        value: each agent's critic value before the update, (N, B) on the CPU; None for a team without critics.
        conversations: each dialogue's messages up to the prompt, for reward models that read whole dialogues, B.
        rows: `row` of each dialogue, B.
        next_samples: a_{k+1}, for Q critics. discount: γ, or 0 if the target is the reward alone.
    """

    number: int
    dialogues: list[int]
    questions: list[int]
    prompts: list[str]
    states: list[list[int]]
    observations: Prompts
    lengths: list[int]
    samples: list[list[Sample]]
    merged: list[Merged]
    next_states: list[list[int]]
    conversations: list[list[Message]] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    reward_raw: Tensor = field(default_factory=lambda: Tensor())
    reward_scaled: Tensor = field(default_factory=lambda: Tensor())
    value: Tensor | None = None
    next_samples: list[list[Sample]] | None = None
    discount: float = 0.0

    @property
    def last(self) -> bool:
        """Whether all dialogues end here."""
        return all(merged.next_prompt is None for merged in self.merged)

    @property
    def texts(self) -> list[list[str]]:
        """The responses as text, [agent][dialogue]."""
        return [[sample.text for sample in agent] for agent in self.samples]

    @property
    def tokens(self) -> list[list[list[int]]]:
        """The responses as token ids, [agent][dialogue]."""
        return [[sample.tokens for sample in agent] for agent in self.samples]

    @property
    def actions(self) -> list[list[list[int]]]:
        """The responses as critics read them: in tokens of the states, [agent][dialogue]."""
        return [[sample.for_critics for sample in agent] for agent in self.samples]


@final
@dataclass(frozen=True, slots=True)
class Player:
    """Plays dialogues in parallel.

    Attributes:
        respond: all agents answer all dialogues.
        tokenizer: of the states. max_prompt_tokens: budget of a state; longer ones lose their oldest messages.
        speakers: the agents. Those without a role and a tokenizer of their own read the states themselves.
    """

    respond: Respond
    controller: Controller
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    speakers: Sequence[Speaker]

    def play(self, dialogues: Sequence[Dialogue], first_turn: int = 0) -> Iterator[Turn]:
        """Yield each turn as it ends, so that agents can learn between turns.

        first_turn: number of the next turn, for dialogues that have had others; it counts towards their `turns`.
        """
        active = list(dialogues)
        states, lengths = self._fitted(self.tokenizer, (dialogue.messages for dialogue in active))
        first = {dialogue.number: state for dialogue, state in zip(active, states, strict=True)}
        number = first_turn
        while active:
            observations, longest = self._observations(active, states, lengths)
            with stage("generate"):
                answers = self.respond(observations, [dialogue.number for dialogue in active], number)
            samples = [self._for_critics(of_agent, s) for of_agent, s in zip(answers, self.speakers, strict=True)]
            conversations = [list(dialogue.messages) for dialogue in active]
            with stage("controller"):
                merged = self._merge(active, samples, number)
            going = []
            for dialogue, decided in zip(active, merged, strict=True):
                if decided.next_prompt is not None:
                    dialogue.advance(decided.aggregate, decided.next_prompt)
                    going.append(dialogue)
            next_states, next_lengths = self._fitted(self.tokenizer, (dialogue.messages for dialogue in going))
            following = iter(next_states)
            yield Turn(
                number=number,
                dialogues=[dialogue.number for dialogue in active],
                questions=[dialogue.question for dialogue in active],
                prompts=[messages[-1]["content"] for messages in conversations],
                states=states,
                observations=observations,
                lengths=longest,
                samples=samples,
                merged=merged,
                next_states=[
                    first[dialogue.number] if decided.next_prompt is None else next(following)
                    for dialogue, decided in zip(active, merged, strict=True)
                ],
                conversations=conversations,
                rows=[dialogue.row for dialogue in active],
            )
            active, states, lengths, number = going, next_states, next_lengths, number + 1

    def _fitted(
        self, tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Sequence[Message]]
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids within the budget, and how many there were before truncation."""
        fitted, lengths = [], []
        for messages in conversations:
            ids = chat_tokens(tokenizer, messages, 10**9)
            lengths.append(len(ids))
            if len(ids) > self.max_prompt_tokens:
                ids = chat_tokens(tokenizer, messages, self.max_prompt_tokens)
            fitted.append(ids)
        return fitted, lengths

    def _observations(
        self, dialogues: Sequence[Dialogue], states: list[list[int]], lengths: list[int]
    ) -> tuple[Prompts, list[int]]:
        """What each agent reads, and the token counts of the longest before truncation. lengths: of the states."""
        found: dict[tuple[str | None, int], tuple[list[list[int]], list[int]]] = {}
        readings = [(speaker.role, id(speaker.tokenizer)) for speaker in self.speakers]
        for speaker, reading in zip(self.speakers, readings, strict=True):
            if speaker.role is None and speaker.tokenizer is None:
                found[reading] = states, lengths
            elif reading not in found:
                tokenizer = speaker.tokenizer or self.tokenizer
                found[reading] = self._fitted(tokenizer, (speaker.reads(dialogue.messages) for dialogue in dialogues))
        longest = [max(counts) for counts in zip(*(counts for _, counts in found.values()), strict=True)]
        return [found[reading][0] for reading in readings], longest

    def _for_critics(self, samples: Sequence[Sample], speaker: Speaker) -> list[Sample]:
        """An agent's responses, with the tokens that critics read if its tokenizer is not that of the states."""
        if speaker.tokenizer is None:
            return list(samples)
        return [
            sample if sample.absent else replace(sample, reference_tokens=self._tokens(sample)) for sample in samples
        ]

    def _tokens(self, sample: Sample) -> list[int]:
        """A response in tokens of the states, with the end token if the agent ended it."""
        text = plain_text(self.tokenizer, sample.text)
        end = self.tokenizer.eos_token_id
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, end] if sample.finished and end is not None else list(ids)

    def _merge(self, dialogues: Sequence[Dialogue], samples: Sequence[Sequence[Sample]], turn: int) -> list[Merged]:
        """The controller's output. The controller writes a next prompt only if none is predefined."""
        merged: dict[int, Merged] = {}
        writes = [turn + 1 < d.turns and turn >= len(d.follow_ups) for d in dialogues]
        for asked in (False, True):
            places = [b for b, write in enumerate(writes) if write == asked]
            if places:
                exchanges = [self._exchange(dialogues[b], [agent[b] for agent in samples]) for b in places]
                found = self.controller.merge(exchanges, turn=turn, last=not asked)
                merged.update(zip(places, found, strict=True))
        for b, dialogue in enumerate(dialogues):
            if turn + 1 < dialogue.turns and turn < len(dialogue.follow_ups):
                merged[b] = Merged(merged[b].aggregate, dialogue.follow_ups[turn], merged[b].fallback)
        return [merged[b] for b in range(len(dialogues))]

    def _exchange(self, dialogue: Dialogue, samples: Sequence[Sample]) -> Exchange:
        """The controller's input, without agents that are lost."""
        there = [(s.text, speaker.name) for s, speaker in zip(samples, self.speakers, strict=True) if not s.absent]
        return Exchange(dialogue.messages, [text for text, _ in there], [name for _, name in there])


def responses_of(
    sampler: Sampler,
    prompts: Prompts,
    dialogues: Sequence[int],
    turn: int,
    *,
    seed: int,
    decodings: Sequence[Decoding],
    numbers: Sequence[int] | None = None,
    adapted: bool = True,
) -> list[list[Sample]]:
    """All agents of this process answer all dialogues, in one batch for each of `decodings`: [agent][dialogue].

    Args:
        prompts: of these agents alone.
        numbers: the agents' numbers in the run; by default the whole team is in this process.
        adapted: if not, the base model answers in place of every agent, with that agent's random numbers.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    answers: list[list[Sample]] = []
    for group in decodings:
        samples = sampler.sample(
            [prompt for of_agent in prompts[group.agents] for prompt in of_agent],
            [SamplingKey(seed, agent, dialogue, turn) for agent in numbers[group.agents] for dialogue in dialogues],
            max_new_tokens=group.max_new_tokens,
            temperature=group.temperature,
            agents=group.agents if adapted else None,
        )
        answers += [samples[i : i + len(dialogues)] for i in range(0, len(samples), len(dialogues))]
    return answers
