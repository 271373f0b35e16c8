"""A tokenizer's chat template as it is used here: one of several, with fixed values and date, and with system messages.

What a template depends on is written before it, so that the tokenizer renders alike wherever it is used or saved.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import find_data
from rlhf_marl.policy.chat import Message, templated
from rlhf_marl.sanitise import first_line, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Value = str | int | float | bool | None
DATE = "2024-07-26"
"""The date that templates get unless a config gives another: always the same, so that runs can be repeated."""
_RENDERED = ("messages", "tools", "documents", "add_generation_prompt")  # set whenever a template is rendered
_PROBE = [
    Message(role="system", content="system text"),
    Message(role="user", content="first question"),
    Message(role="assistant", content="answer text"),
    Message(role="user", content="second question"),
]
# A system message becomes the beginning of the user's message after it.
_FOLD = (
    "{% if messages[0]['role'] == 'system' and messages[1:] and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}{% endif %}"
)
_DIRECTIVES = "aAbBcdHIjmMpSUwWxXyYZ"


def adapt_template(
    tokenizer: "PreTrainedTokenizerBase",
    where: str,
    *,
    chosen: str | None = None,
    values: Mapping[str, Value] | None = None,
    day: str = DATE,
) -> None:
    """Choose the tokenizer's chat template and fix what it depends on.

    A template that refuses or leaves out a system message gets it as the beginning of the first user message.

    Args:
        where: file and key of the model; the keys of the arguments begin with it.
        chosen: name of one of the tokenizer's templates, or a file with a template.
        values: of the template's own variables.
        day: the date that `strftime_now` gives, YYYY-MM-DD.

    Raises:
        UsageError: no such template, or a value that it does not read.
    """
    template = _chosen(tokenizer.chat_template, f"{where}.chat_template", chosen)
    if template is None:
        if values:
            raise UsageError(f"{where}.chat_template_kwargs: the tokenizer has no chat template")
        return
    before = []
    for name, value in (values or {}).items():
        if name in _RENDERED or not name.isidentifier() or not re.search(rf"\b{name}\b", template):
            raise UsageError(f"{where}.chat_template_kwargs: {name!r} is not a variable of the model's chat template")
        before.append(f"{{% set {name} = {value!r} %}}")
    if "strftime_now" in template:
        before.append(_fixed_date(date.fromisoformat(day)))
    tokenizer.chat_template = _after(before, template)
    if not _writes(tokenizer, _PROBE, "system text"):
        tokenizer.chat_template = _after([*before, _FOLD], template)


def check_chat_template(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise UsageError if the template cannot render a dialogue, or leaves out messages."""
    if not tokenizer.chat_template:
        raise UsageError(f"{where}: the model's tokenizer has no chat template; choose a chat (instruct) model")
    for chat in (_PROBE, _PROBE[1:]):
        try:
            text = templated(tokenizer, chat, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise UsageError(f"{where}: the chat template refuses a dialogue: {first_line(error)}") from None
        for message in chat:
            if message["content"] not in text:
                raise UsageError(f"{where}: the chat template leaves out messages with the role {message['role']}")


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the control token that the template writes after an assistant's turn; None if it writes none."""
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}.union(tokenizer.all_special_tokens)
    for chat in (_PROBE[1:3], _PROBE[1:]):  # some templates write it only where another turn follows
        try:
            text = templated(tokenizer, chat, tokenize=False)
        except TemplateError:
            continue
        rest = text.rpartition("answer text")[2].lstrip()
        if found := [token for token in known if token and rest.startswith(token)]:
            return int(tokenizer.convert_tokens_to_ids(max(found, key=len)))
    return None


def template_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids that a dialogue has; empty if the template refuses one."""
    try:
        return set(templated(tokenizer, _PROBE, add_generation_prompt=True, return_dict=True)["input_ids"])
    except TemplateError:
        return set()


def _chosen(templates: str | dict[str, str] | None, where: str, chosen: str | None) -> str | None:
    """The template of this name or file; without one the only or the default template."""
    named = templates if isinstance(templates, dict) else {}
    if chosen is None and (not named or "default" in named):
        return named.get("default") if named else templates  # type: ignore[return-value]
    if chosen in named:
        return named[chosen]
    names = ", ".join(map(printable, named))
    if chosen is None:
        raise UsageError(f"{where}: missing; the tokenizer has several templates: {names}")
    try:
        return find_data(chosen, where).read_text("utf-8")
    except (UsageError, UnicodeDecodeError):
        choice = f" ({names})" if named else ", which has no names for them"
        raise UsageError(f"{where}: {chosen!r} is neither a file nor a template of the tokenizer{choice}") from None


def _after(before: list[str], template: str) -> str:
    """The template after these statements. Its environment drops the line end after each of them."""
    return "".join(f"{statement}\n" for statement in before) + template


def _fixed_date(day: date) -> str:
    """A macro that stands in for `strftime_now` and always gives this day."""
    filters = ""
    for letter in _DIRECTIVES:
        written = day.strftime(f"%{letter}")
        filters += f"|replace('%{letter}', {written!r})|replace('%-{letter}', {written.lstrip('0')!r})"
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}"


def _writes(tokenizer: "PreTrainedTokenizerBase", chat: list[Message], text: str) -> bool:
    try:
        return text in templated(tokenizer, chat, tokenize=False)
    except TemplateError:
        return False
