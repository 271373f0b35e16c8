"""A chat with a run: one dialogue, whose answers the agents' reward models score as it goes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from rlhf_marl.errors import RunStopped
from rlhf_marl.evaluation.judges import Scorer
from rlhf_marl.policy.chat import Message
from rlhf_marl.rewards import score_all
from rlhf_marl.sanitise import neutralise
from rlhf_marl.serving.answers import TEAM, Answer, Answerer, Sampling

Scores = dict[str, float]  # scaled, by reward model


@final
@dataclass(frozen=True, slots=True)
class Said:
    """One answer.

    Attributes:
        who: whose answer it is, or in whose place the base model gave it.
        adapted: whether the trained adapters gave it.
        tokens: that it has. finished: whether it ended before the token limit.
        problem: why there are no scores, if a reward model failed.
    """

    who: str
    adapted: bool
    text: str
    tokens: int
    finished: bool
    scores: Scores
    problem: str | None


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """The answers to one question: that of whom was asked and, side by side, the base model's.

    Attributes:
        truncated: whether the dialogue no longer fitted the context, so that its oldest messages were left out.
    """

    question: str
    said: Sequence[Said]
    truncated: bool


@final
class Conversation:
    """A dialogue in progress.

    Attributes:
        who: is asked next: one of the agents, or the team.
        beside_base: whether the base model answers too, with the same random numbers. The dialogue goes on with the
            answer of who was asked.
        sampling: of the next answers.
        replies: so far.
    """

    def __init__(self, answerer: Answerer, scorers: Sequence[Scorer], sampling: Sampling) -> None:
        self._answerer, self._scorers = answerer, scorers
        self.who, self.beside_base, self.sampling = TEAM, False, sampling
        self.replies: list[Reply] = []
        self._messages: list[Message] = []

    @property
    def scorers(self) -> list[str]:
        """Names of the reward models."""
        return [scorer.name for scorer in self._scorers]

    def ask(self, question: str) -> Reply:
        """Ask, and remember question and answer. After an error the dialogue is as before.

        Raises:
            RunStopped: the controller failed.
        """
        asked = [*self._messages, Message(role="user", content=question)]
        room = self._answerer.context_length - self._answerer.limit(self.who, self.sampling)
        truncated = self._answerer.prompt_tokens(self.who, asked) > room
        policies = [True, False] if self.beside_base else [True]
        answers = [self._answerer.answer(self.who, asked, self.sampling, adapted=adapted) for adapted in policies]
        said = [self._scored(asked, answer, adapted) for answer, adapted in zip(answers, policies, strict=True)]
        self._messages = [*asked, Message(role="assistant", content=neutralise(answers[0].text))]
        self.replies.append(Reply(question, said, truncated))
        return self.replies[-1]

    def begin_again(self) -> None:
        """Forget the dialogue; what was said remains in `replies`."""
        self._messages = []

    def record(self) -> list[dict[str, Any]]:
        """The replies as plain data."""
        return [asdict(reply) for reply in self.replies]

    @torch.inference_mode()
    def _scored(self, asked: Sequence[Message], answer: Answer, adapted: bool) -> Said:
        scores: Scores = {}
        problem = None
        for scorer in self._scorers:
            prompt = asked if scorer.card.reads_dialogue else asked[-1]["content"]
            try:
                scores[scorer.name] = score_all(scorer.card, scorer.model, [prompt], [answer.text])[1][0]
            except RunStopped as error:
                problem = str(error)
        return Said(self.who, adapted, answer.text, len(answer.tokens), answer.finished, scores, problem)
