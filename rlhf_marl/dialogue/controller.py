"""The controller: merges the agents' responses into the team's answer and writes the next prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from rlhf_marl.errors import RlhfMarlError, RunStopped
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.instructions import Instructions, Task, load_instructions, render
from rlhf_marl.sanitise import first_line, neutralise, printable
from rlhf_marl.services.endpoint import Endpoint, text_of


@dataclass(frozen=True, slots=True)
class Exchange:
    """The controller's input: one dialogue's messages, ending with the prompt, and the agents' responses and names."""

    messages: Sequence[Message]
    responses: Sequence[str]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """The controller's output.

    Attributes:
        aggregate: the team's answer.
        next_prompt: the prompt of the next turn, or None after the last turn.
        fallback: the controller gave no usable output for one of the two, so the first non-empty response or the last
            prompt was used instead.
    """

    aggregate: str
    next_prompt: str | None
    fallback: bool


class Controller(Protocol):
    """Merges a batch of exchanges of turn number `turn` (from 0); writes next prompts unless it is the last turn."""

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]: ...


class Chat(Protocol):
    """A chat model: one completion per conversation, of at most max_tokens tokens."""

    def __call__(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]: ...


class Templates(Instructions):
    """The controller's two tasks.

    Variables: `prompt`, `responses`, `names`, `history` and, for next_prompt, `aggregate`.
    """

    aggregate: Task
    next_prompt: Task


def load_templates(path: Path, names: Sequence[str]) -> Templates:
    """Read a template file and check it with these agents; raises UsageError with one line per mistake."""
    templates = load_instructions(path, Templates)
    example = {"prompt": "p", "responses": ["a"] * len(names), "names": names, "history": [], "aggregate": "c"}
    for name, task in templates:
        task.messages(f"{path}: {name}.user", **example)
    return templates


@final
class ChatController:
    """A language model as controller: one batched call for the answers, one for the next prompts."""

    def __init__(
        self,
        chat: Chat,
        templates: Templates,
        *,
        aggregate_tokens: int,
        next_prompt_tokens: int,
        max_response_characters: int,
    ) -> None:
        self._chat = chat
        self._templates = templates
        self._aggregate_tokens = aggregate_tokens
        self._next_prompt_tokens = next_prompt_tokens
        self._limit = max_response_characters

    @property
    def aggregate_tokens(self) -> int:
        """Token limit of the team's answer."""
        return self._aggregate_tokens

    def with_aggregate_tokens(self, aggregate_tokens: int) -> "ChatController":
        """The same controller with another token limit of the team's answer."""
        return ChatController(
            self._chat,
            self._templates,
            aggregate_tokens=aggregate_tokens,
            next_prompt_tokens=self._next_prompt_tokens,
            max_response_characters=self._limit,
        )

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]:
        variables = [self._variables(exchange) for exchange in exchanges]
        answers = self._ask(self._templates.aggregate, variables, self._aggregate_tokens)
        aggregates = [answer or _stand_in(v["responses"]) for answer, v in zip(answers, variables, strict=True)]
        if last:
            return [Merged(aggregate, None, not answer) for aggregate, answer in zip(aggregates, answers, strict=True)]
        for v, aggregate in zip(variables, aggregates, strict=True):
            v["aggregate"] = aggregate
        prompts = [
            text.strip().partition("\n")[0]  # first line only: small models continue and answer the prompt
            for text in self._ask(self._templates.next_prompt, variables, self._next_prompt_tokens)
        ]
        return [
            Merged(aggregate, prompt or exchange.messages[-1]["content"], not (answer and prompt))
            for exchange, answer, aggregate, prompt in zip(exchanges, answers, aggregates, prompts, strict=True)
        ]

    def _variables(self, exchange: Exchange) -> dict:
        return {
            "history": exchange.messages[:-1],
            "prompt": exchange.messages[-1]["content"],
            "responses": [neutralise(text, self._limit) for text in exchange.responses],
            "names": exchange.names,
        }

    def _ask(self, task: Task, variables: Sequence[dict], max_tokens: int) -> list[str]:
        conversations = [task.messages("controller.templates", **v) for v in variables]
        return [neutralise(text) for text in self._chat(conversations, max_tokens)]


@final
class ScriptedController:
    """Fixed Jinja2 templates instead of a model."""

    def __init__(self, aggregate: str, next_prompts: Sequence[str]) -> None:
        self._aggregate = aggregate
        self._next_prompts = list(next_prompts)

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]:
        merged = []
        for exchange in exchanges:
            variables = {
                "prompt": exchange.messages[-1]["content"],
                "responses": [neutralise(text) for text in exchange.responses],
                "names": exchange.names,
                "history": exchange.messages[:-1],
            }
            aggregate = render(self._aggregate, "controller.aggregate", **variables)
            template = self._next_prompts[min(turn, len(self._next_prompts) - 1)]
            next_prompt = None if last else render(template, "controller.next_prompts", **variables)
            merged.append(Merged(aggregate, next_prompt, fallback=False))
        return merged


@final
class CallableController:
    """A Python function as controller, for custom protocols.

    Called for each dialogue in every turn as function(messages, responses, turn=k, last=bool); messages end with the
    prompt. It returns the team's answer and the next prompt, both strings. An empty string triggers the fallback, as
    with a model. In the last turn the next prompt is ignored.
    """

    def __init__(self, function: Callable[..., tuple[str, str | None]], where: str) -> None:
        self._function, self._where = function, where

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]:
        return [self._merged(exchange, turn, last) for exchange in exchanges]

    def _merged(self, exchange: Exchange, turn: int, last: bool) -> Merged:
        messages = [Message(**message) for message in exchange.messages]  # a copy: the function may keep or change it
        try:
            found = self._function(messages, list(exchange.responses), turn=turn, last=last)
        except RlhfMarlError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise RunStopped(f"{self._where}: raised {type(error).__name__}: {first_line(error)}") from error
        wanted = (str, str | None) if last else (str, str)
        if not isinstance(found, tuple) or len(found) != 2 or not all(map(isinstance, found, wanted)):
            returned = printable(repr(found)[:80])
            raise RunStopped(f"{self._where}: returned {returned}; an answer and a next prompt are needed, as text")
        answer = neutralise(found[0])
        aggregate = answer or _stand_in([neutralise(text) for text in exchange.responses])
        if last:
            return Merged(aggregate, None, not answer)
        prompt = neutralise(found[1] or "")
        return Merged(aggregate, prompt or exchange.messages[-1]["content"], not (answer and prompt))


def _stand_in(responses: Sequence[str]) -> str:
    """The fallback for the team's answer: the first non-empty response."""
    return next((text for text in responses if text), "...")


def endpoint_chat(endpoint: Endpoint) -> Chat:
    """A chat model behind an OpenAI-compatible endpoint."""

    def chat(conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        return [text_of(choice) for choice in endpoint.ask(conversations, max_tokens)]

    return chat
