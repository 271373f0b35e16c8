"""Who of a run can be asked (the base model, each agent, the team), and how they answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from rlhf_marl.dialogue.controller import ChatController
from rlhf_marl.dialogue.player import Dialogue, Player, responses_of
from rlhf_marl.dialogue.speakers import Speaker, decodings
from rlhf_marl.evaluation.loaded_run import LoadedRun
from rlhf_marl.policy.alternatives import Likelihood, likelihoods
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import SamplingKey

BASE, TEAM = "base", "team"
_WHOLE = 10**9  # a budget that truncates nothing


@final
@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is sampled.

    Attributes:
        number: tells answers to the same messages apart; each has its own random numbers.
        max_tokens, temperature: as in training if None. The temperature is that of the agents: a controller that is a
            language model decodes greedily, as in training.
    """

    seed: int
    number: int = 0
    max_tokens: int | None = None
    temperature: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        prompt, tokens: ids as read and as sampled, with a stop token if reached; of the team, the ids of the dialogue
            and of the text.
        finished: whether it ended before the token limit.
        agent: whose adapter gave the tokens; None: the base model, or the team.
    """

    text: str
    prompt: Sequence[int]
    tokens: Sequence[int]
    finished: bool
    agent: int | None


@final
class Answerer:
    """Asks the models of a loaded run; not thread-safe.

    Attributes:
        names: of who can be asked: base, agent-0, ..., team.
        context_length: maximum tokens of prompt and answer together.
    """

    def __init__(self, run: LoadedRun) -> None:
        self._run, self._agents = run, run.agents
        self._tokenizer = run.agents.chat_model.tokenizer
        self.names = [BASE, *(f"agent-{i}" for i in range(len(run.agents.speakers))), TEAM]
        self.context_length = run.agents.chat_model.context_length

    def limit(self, who: str, sampling: Sampling) -> int:
        """The largest token limit of those that answer."""
        if sampling.max_tokens is not None:
            return sampling.max_tokens
        if who != TEAM:
            return self._generation(who)[0]
        return max(group.max_new_tokens for group in decodings(self._run.config))

    def prompt_tokens(self, who: str, messages: Sequence[Message]) -> int:
        """Token count of what is read without truncation; of the team, by the agent that reads most.

        Raises:
            TemplateError: the model's chat template refuses the messages.
        """
        speakers = self._agents.speakers if who == TEAM else [self._speaker(who)]
        with_role = {speaker.role: speaker.reads(messages) for speaker in speakers}
        return max(len(chat_tokens(self._tokenizer, read, _WHOLE)) for read in with_role.values())

    def answer(self, who: str, messages: Sequence[Message], sampling: Sampling, *, adapted: bool = True) -> Answer:
        """Answer the messages, the last of which is the user's; those that exceed the context lose the oldest ones.

        Args:
            adapted: whether agents use their adapters; otherwise the base model answers in their place, with the same
                random numbers.

        Raises:
            RunStopped: the controller failed.
        """
        turn = sum(message["role"] == "user" for message in messages) - 1
        if who == TEAM:
            return self._of_team(messages, sampling, turn, adapted)
        agent = None if who == BASE else self._number(who)
        max_tokens, temperature = self._generation(who)
        max_tokens = max_tokens if sampling.max_tokens is None else sampling.max_tokens
        speaker = self._speaker(who)
        prompt = chat_tokens(self._tokenizer, speaker.reads(messages), self.context_length - max_tokens)
        (sample,) = self._agents.sampler.sample(
            [prompt],
            [SamplingKey(sampling.seed, agent or 0, sampling.number, turn)],
            max_new_tokens=max_tokens,
            temperature=temperature if sampling.temperature is None else sampling.temperature,
            agents=slice(agent, agent + 1) if agent is not None and adapted else None,
        )
        return Answer(sample.text, prompt, sample.tokens, sample.finished, agent if adapted else None)

    def likelihoods(self, answer: Answer, n_likeliest: int) -> list[Likelihood]:
        """Log-probabilities of an agent's or the base model's tokens, without the stop token."""
        return likelihoods(
            self._agents.chat_model.model,
            self._agents.adapters,
            answer.prompt,
            answer.tokens[:-1] if answer.finished else answer.tokens,
            n_likeliest,
            None if answer.agent is None else slice(answer.agent, answer.agent + 1),
        )

    def token_text(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def _of_team(self, messages: Sequence[Message], sampling: Sampling, turn: int, adapted: bool) -> Answer:
        """The controller's answer from those of all agents: one turn of a dialogue, as in training."""
        groups = [
            replace(
                group,
                max_new_tokens=group.max_new_tokens if sampling.max_tokens is None else sampling.max_tokens,
                temperature=group.temperature if sampling.temperature is None else sampling.temperature,
            )
            for group in decodings(self._run.config)
        ]
        respond = partial(responses_of, self._agents.sampler, seed=sampling.seed, decodings=groups, adapted=adapted)
        controller = self._run.controller
        if isinstance(controller, ChatController) and sampling.max_tokens is not None:
            controller = controller.with_aggregate_tokens(sampling.max_tokens)
        room = self.context_length - max(group.max_new_tokens for group in groups)
        player = Player(respond, controller, self._tokenizer, room, self._agents.speakers)
        (played,) = player.play([Dialogue(sampling.number, 0, list(messages), turns=turn + 1)], turn)
        text = played.merged[0].aggregate
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if isinstance(controller, ChatController):
            finished = len(tokens) < controller.aggregate_tokens
        else:  # a script or a function knows no limit
            finished = sampling.max_tokens is None or len(tokens) <= sampling.max_tokens
            if not finished:
                tokens = tokens[: sampling.max_tokens]
                text = self._tokenizer.decode(tokens)
        return Answer(text, played.states[0], tokens, finished, None)

    def _generation(self, who: str) -> tuple[int, float]:
        """Token limit and temperature in training; of the base model, those of all agents together."""
        config = self._run.config
        generation = config.generation if who == BASE else config.generation_of(self._number(who))
        return generation.max_new_tokens, generation.temperature

    def _speaker(self, who: str) -> Speaker:
        return Speaker(BASE) if who == BASE else self._agents.speakers[self._number(who)]

    @staticmethod
    def _number(who: str) -> int:
        return int(who.removeprefix("agent-"))
