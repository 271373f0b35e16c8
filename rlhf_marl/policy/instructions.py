"""Instructions for chat models, from files in prompts/: system message, worked examples, and a sandboxed template."""

from pathlib import Path
from typing import TypeVar

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf_marl.config.validation import explain
from rlhf_marl.errors import UsageError
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.policy.chat import Message
from rlhf_marl.sanitise import first_line

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class Instructions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Example(Instructions):
    """A worked example, shown to the model as an earlier turn of the chat."""

    user: str
    assistant: str


class Task(Instructions):
    """One instruction; `user` is a Jinja2 template."""

    system: str
    examples: list[Example] = []
    user: str

    def messages(self, where: str, **variables: object) -> list[Message]:
        """The chat messages of this task, with `user` rendered."""
        shown = [
            Message(role=role, content=getattr(example, role).strip())
            for example in self.examples
            for role in ("user", "assistant")
        ]
        request = Message(role="user", content=render(self.user, where, **variables).strip())
        return [Message(role="system", content=self.system), *shown, request]


T = TypeVar("T", bound=Instructions)


def load_instructions(path: Path, kind: type[T]) -> T:
    """Read an instruction file; raises UsageError with one line per mistake."""
    content = load_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(explain(error, str(path), content)) from None


def render(template: str, where: str, **variables: object) -> str:
    """Render a sandboxed Jinja2 template. Raises UsageError, which names `where`, if rendering fails."""
    try:
        return _JINJA.from_string(template).render(**variables)
    except Exception as error:  # an expression in a template can raise anything
        raise UsageError(f"{where}: template error: {first_line(error)}") from None
