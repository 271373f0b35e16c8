"""Make text from models, files and services safe for where it is shown or used.

| function        | for                            | what it does                                               |
| --------------- | ------------------------------ | ---------------------------------------------------------- |
| `printable`     | terminal and log lines         | escapes control and bidi characters and line ends          |
| `first_line`    | an exception in an error line  | its first line, cut to 200 characters, `printable`         |
| `shortened`     | a value in an error line       | its repr, cut to 80 characters                             |
| `neutralise`    | prompt templates               | replaces angle brackets, removes control characters        |
| `visible`       | HTML, before Jinja's autoescape | writes hidden and reordering characters as ⟨U+202E⟩       |
| `markdown_text` | Markdown text and tables       | one line, markup escaped                                   |
| `markdown_code` | Markdown code spans            | in backquotes, without backquotes and bars                 |
"""

import re

# Controls (but newline and tab), format characters that reorder or hide text, and lone surrogates.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_MARKUP = re.compile(r"[\\`*_\[\]<>|#~$&]")


def printable(text: str) -> str:
    """Escape everything that a terminal interprets: control and bidi characters, line ends."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: Exception) -> str:
    """First line of an exception's message, at most 200 characters; its type if the message is empty."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:200])


def shortened(value: object) -> str:
    """The repr of a value, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def neutralise(text: str, limit: int | None = None) -> str:
    """Make untrusted text safe between a template's tags: no angle brackets, no control characters.

    Cut to `limit` characters. Control tokens of other forms, such as [INST], are broken where the text meets its
    tokenizer (`rlhf_marl.policy.chat.plain_text`).
    """
    cut = "".join(c if c.isprintable() or c == "\n" else " " for c in text)[:limit]
    return cut.replace("<", "‹").replace(">", "›").strip()


def visible(text: str) -> str:
    """Write out every control, reordering or hidden character, such as ⟨U+202E⟩."""
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


def markdown_text(text: str) -> str:
    """Escape text for Markdown: one line, no markup, no control characters."""
    one_line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKUP.sub(r"\\\g<0>", one_line)


def markdown_code(text: str) -> str:
    """A Markdown code span that also fits into a table."""
    return f"`{''.join(c for c in text if c.isprintable() and c not in '`|')}`"
