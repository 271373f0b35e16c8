"""The controller: merges the agents' responses into the team's answer and writes the next prompt."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import openai
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_marl.dialogue.state import Message, neutralise
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.validation import explain
from rlhf_marl.yaml_io import load_yaml

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the controller reads: one dialogue's messages, the last one the prompt, and the agents' responses to it."""

    messages: Sequence[Message]
    responses: Sequence[str]


@dataclass(frozen=True, slots=True)
class Merged:
    """What the controller decides.

    Attributes:
        aggregate: the team's answer.
        next_prompt: the prompt of the next turn, or None after the last turn.
        fallback: the model wrote nothing usable for one of the two, and the first non-empty response or the last prompt
            stands in.
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


class Example(BaseModel):
    """A worked example, shown to the model as an earlier turn of the chat."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    user: str
    assistant: str


class Task(BaseModel):
    """One instruction; `user` is Jinja2 over `prompt`, `responses`, `history` and, for next_prompt, `aggregate`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    system: str
    examples: list[Example] = []
    user: str

    def messages(self, where: str, **variables: object) -> list[Message]:
        """The chat that asks for it."""
        shown = [
            Message(role=role, content=getattr(example, role).strip())
            for example in self.examples
            for role in ("user", "assistant")
        ]
        request = Message(role="user", content=render(self.user, where, **variables).strip())
        return [Message(role="system", content=self.system), *shown, request]


class Templates(BaseModel):
    """The controller's two tasks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    aggregate: Task
    next_prompt: Task


def load_templates(path: Path) -> Templates:
    """Read and compile-check a template file; raises UsageError with one line per mistake."""
    content = load_yaml(path)
    try:
        templates = Templates.model_validate(content)
    except ValidationError as error:
        raise UsageError(explain(error, str(path), content)) from None
    example = {"prompt": "p", "responses": ["a", "b"], "history": [], "aggregate": "c"}
    for name, task in templates:
        task.messages(f"{path}: {name}.user", **example)
    return templates


def render(template: str, where: str, **variables: object) -> str:
    """Render a sandboxed Jinja2 template; a mistake in it is a UsageError that names `where`."""
    try:
        return _JINJA.from_string(template).render(**variables)
    except TemplateError as error:
        raise UsageError(f"{where}: template error: {error}") from None


@final
class ChatController:
    """A language model as controller, with one call for the answers and one for the next prompts."""

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

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]:
        variables = [self._variables(exchange) for exchange in exchanges]
        answers = self._ask(self._templates.aggregate, variables, self._aggregate_tokens)
        aggregates = [
            answer or next((text for text in v["responses"] if text), "...")
            for answer, v in zip(answers, variables, strict=True)
        ]
        if last:
            return [Merged(aggregate, None, not answer) for aggregate, answer in zip(aggregates, answers, strict=True)]
        for v, aggregate in zip(variables, aggregates, strict=True):
            v["aggregate"] = aggregate
        prompts = [
            text.strip().partition("\n")[0]  # a prompt is one line: small models go on and answer themselves
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
        }

    def _ask(self, task: Task, variables: Sequence[dict], max_tokens: int) -> list[str]:
        conversations = [task.messages("controller.templates", **v) for v in variables]
        return [neutralise(text) for text in self._chat(conversations, max_tokens)]


@final
class ScriptedController:
    """Templates instead of a model."""

    def __init__(self, aggregate: str, next_prompts: Sequence[str]) -> None:
        self._aggregate = aggregate
        self._next_prompts = list(next_prompts)

    def merge(self, exchanges: Sequence[Exchange], *, turn: int, last: bool) -> list[Merged]:
        merged = []
        for exchange in exchanges:
            variables = {
                "prompt": exchange.messages[-1]["content"],
                "responses": [neutralise(text) for text in exchange.responses],
            }
            aggregate = render(self._aggregate, "controller.aggregate", **variables)
            template = self._next_prompts[min(turn, len(self._next_prompts) - 1)]
            next_prompt = None if last else render(template, "controller.next_prompts", **variables)
            merged.append(Merged(aggregate, next_prompt, fallback=False))
        return merged


def openai_chat(
    model: str, *, api_key: str, base_url: str | None, timeout: float, max_retries: int, parallel: int = 8
) -> Chat:
    """A chat model behind an OpenAI-compatible endpoint, asked in parallel; greedy.

    The returned function raises RunStopped when the endpoint still fails after the client's own retries.
    """
    client = openai.OpenAI(api_key=api_key, base_url=base_url, timeout=timeout, max_retries=max_retries)

    def complete(messages: Sequence[Message], max_tokens: int) -> str:
        try:
            answer = client.chat.completions.create(
                model=model,
                messages=list(messages),  # type: ignore[arg-type]
                max_tokens=max_tokens,
                temperature=0.0,
            )
        except openai.OpenAIError as error:
            reason = str(error).splitlines()[0].replace(api_key, "***")[:200] if str(error) else ""
            place = base_url or "the default OpenAI endpoint"
            raise RunStopped(
                f"controller: {model} at {place} failed after {max_retries} retries: {type(error).__name__}: {reason}"
            ) from None
        return (answer.choices[0].message.content or "") if answer.choices else ""

    def chat(conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        with ThreadPoolExecutor(max_workers=min(parallel, len(conversations))) as pool:
            ask: Callable[[Sequence[Message]], str] = lambda messages: complete(messages, max_tokens)  # noqa: E731
            return list(pool.map(ask, conversations))

    return chat
