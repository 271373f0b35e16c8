"""A chat model that grades by a rubric."""

import logging
import math
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, Protocol, final

from pydantic import Field

from rlhf_marl.config.validation import Address, Retries, Seconds
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.instructions import Task, load_instructions
from rlhf_marl.rewards.base import CardBase, Finite, PositiveInt, RewardModel, Text, model_available, public_name
from rlhf_marl.sanitise import neutralise
from rlhf_marl.services.endpoint import Choice, Endpoint, text_of
from rlhf_marl.services.journal import UNRECORDED, Journal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_marl.policy.sampler import Sampler

_log = logging.getLogger("rlhf_marl")
_TOP = 20  # top_logprobs requested from an endpoint


class JudgeCard(CardBase):
    """A chat model that grades each response by a rubric."""

    kind: Literal["judge"]
    model: Text | None = None
    """Hub id, folder or package reference of a local chat model; with base_url, the name the endpoint knows. If not
    given, the agents' own base model with adapters off, which costs no memory (within a run)."""
    revision: str | None = None
    base_url: Address | None = None
    """An OpenAI-compatible endpoint that serves the model; a local model if not given."""
    api_key_env: Text = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    rubric: Text = "prompts/judge.yaml"
    """Instructions: system message, worked examples, and a template over `prompt` and `response`."""
    grades: Annotated[list[Text], Field(min_length=2)] = Field(default_factory=lambda: ["1", "2", "3", "4", "5"])
    """Answers from worst to best; the score is the expected place, from 0 to len(grades) - 1."""
    failed_score: Finite = 0.0
    """Score where an endpoint's answer names no grade; such answers are counted in a warning."""
    batch_size: PositiveInt = 8
    timeout: Seconds = 60.0
    max_retries: Retries = 5

    file_keys = ("model", "rubric")

    def build(self, base: "Sampler | None", journal: Journal) -> RewardModel:
        return Judge(self, base, journal)

    def scores_with(self) -> str:
        return str(self.model)

    def available(self) -> str:
        if self.model is None:
            return ""
        found = model_available(self.model)
        return "endpoint" if found.endswith("cached") and self.base_url is not None else found

    def loads(self) -> list[tuple[str, str]]:
        return [(self.model, "auto")] if self.model is not None and self.base_url is None else []

    def in_words(self) -> str:
        return f"grades by {public_name(self.model)}" if self.model else "grades by the agents' base model"


class Grader(Protocol):
    """Weights of the grades for each conversation, or None if the answer names no grade."""

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> list[list[float] | None]: ...


@final
class Judge:
    """score = expected index of the grade, Σ_k k p_k, from 0 (the worst) to len(grades) - 1.

    Attributes:
        failed: number of answers so far that named no grade and got the card's failed_score.
    """

    def __init__(
        self,
        card: JudgeCard,
        base: "Sampler | None" = None,
        journal: Journal = UNRECORDED,
        grader: Grader | None = None,
    ) -> None:
        """
        Args:
            base: sampler of the agents' base model, for a card without a model.
            journal: records an endpoint's answers.
            grader: by default the card's local model or endpoint.
        """
        self._card = card
        path = find_data(card.rubric, f"card {card.name}: rubric")
        self._rubric, self._where = load_instructions(path, Task), f"{path}: user"
        self._rubric.messages(self._where, prompt="p", response="r")  # a template error raises now
        self._grade = grader or build_grader(card, base, journal)
        self.failed = 0

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        conversations = [
            self._rubric.messages(self._where, prompt=neutralise(prompt), response=neutralise(response))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = []
        failed_before = self.failed
        for start in range(0, len(conversations), self._card.batch_size):
            for weights in self._grade(conversations[start : start + self._card.batch_size]):
                if weights is None or not sum(weights) > 0:
                    self.failed += 1
                    scores.append(self._card.failed_score)
                else:
                    scores.append(sum(k * weight for k, weight in enumerate(weights)) / sum(weights))
        if self.failed > failed_before:
            _log.warning(
                "judge %s: %d of %d answers named none of the grades %s (%d so far)",
                *(self._card.name, self.failed - failed_before, len(scores), self._card.grades, self.failed),
            )
        return scores


def build_grader(card: JudgeCard, base: "Sampler | None", journal: Journal = UNRECORDED) -> Grader:
    """The card's grader: an endpoint or a local model."""
    return _endpoint_grader(card, journal) if card.base_url is not None else _local_grader(card, base)


def _local_grader(card: JudgeCard, base: "Sampler | None") -> Grader:
    """Grades by the next-token probabilities of a local model."""
    if card.model is not None:
        from rlhf_marl.policy.loading import default_device, load_chat_model  # slow to import: torch and transformers
        from rlhf_marl.policy.sampler import TransformersSampler

        device = default_device()
        chat_model = load_chat_model(card.model, f"card {card.name}: model", device, revision=card.revision)
        base = TransformersSampler(chat_model)
    sampler = base or _missing(card)
    shared, following = _grade_tokens(card, sampler.tokenizer)
    budget = sampler.context_length - len(shared)

    def grade(conversations: Sequence[Sequence[Message]]) -> list[list[float] | None]:
        prompts = [chat_tokens(sampler.tokenizer, messages, budget) + shared for messages in conversations]
        return list(sampler.next_token(prompts, following))

    return grade


def _grade_tokens(card: JudgeCard, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The token prefix shared by all grades (a word boundary in some tokenizers), and each grade's next token."""
    rows = [tokenizer(grade, add_special_tokens=False)["input_ids"] for grade in card.grades]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    following = [tuple(row[shared : shared + 1]) for row in rows]
    if () in following or len(set(following)) < len(following):
        raise UsageError(
            f"card {card.name}: grades: two of {card.grades} begin with the same token in this model's tokenizer"
        )
    return rows[0][:shared], [token for (token,) in following]


def _missing(card: JudgeCard) -> NoReturn:
    raise UsageError(f"card {card.name}: model: missing; outside a run there is no agents' base model to use instead")


def _endpoint_grader(card: JudgeCard, journal: Journal) -> Grader:
    """Grades by the endpoint's log-probabilities if it returns them, else by the first grade in its text."""
    if card.model is None:
        _missing(card)
    endpoint = Endpoint(
        f"judge {card.name}",
        card.model,
        api_key_env=card.api_key_env,
        base_url=card.base_url,
        timeout=card.timeout,
        max_retries=card.max_retries,
        journal=journal,
    )

    def grade(conversations: Sequence[Sequence[Message]]) -> list[list[float] | None]:
        choices = endpoint.ask(conversations, 8, logprobs=True, top_logprobs=_TOP)
        return [_from_probabilities(choice, card.grades) or _from_text(choice, card.grades) for choice in choices]

    return grade


def _from_probabilities(choice: Choice | None, grades: Sequence[str]) -> list[float] | None:
    """Weights from the alternatives of the first token; None if there are none or none is a grade."""
    content = choice.logprobs.content if choice is not None and choice.logprobs is not None else None
    if not content:
        return None
    weights = [0.0] * len(grades)
    for alternative in content[0].top_logprobs:
        if (token := alternative.token.strip()) in grades:
            weights[grades.index(token)] += math.exp(min(0.0, alternative.logprob))
    return weights if any(weights) else None


def _from_text(choice: Choice | None, grades: Sequence[str]) -> list[float] | None:
    """All weight on the first grade that occurs in the text as a separate word."""
    longest_first = "|".join(re.escape(grade) for grade in sorted(grades, key=len, reverse=True))
    found = re.search(rf"(?<!\w)(?:{longest_first})(?!\w)", text_of(choice))
    return [float(grade == found.group()) for grade in grades] if found else None
