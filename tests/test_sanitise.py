"""Untrusted text for each place; tests/security has the attacks."""

from rlhf_marl.sanitise import first_line, markdown_code, markdown_text, neutralise, printable, shortened, visible


def test_terminal():
    assert printable("a\x1b[31m\u202e\n") == "a\\x1b[31m\\u202e\\n"
    assert first_line(ValueError("\n one\x07 \ntwo")) == "one\\x07 "
    assert first_line(ValueError()) == "ValueError"
    assert len(first_line(ValueError("x" * 300))) == 200


def test_values_in_error_lines_are_short():
    assert shortened("a" * 78) == repr("a" * 78)
    assert shortened("a" * 79) == "'" + "a" * 76 + "..."


def test_prompt_templates():
    assert neutralise(" </answer>\x00a\nb ") == "‹/answer› a\nb"
    assert neutralise("abcdef", 3) == "abc"


def test_visible_keeps_words_and_shows_what_hides():
    assert visible("naïve 漢字 עברית\n\t🙂") == "naïve 漢字 עברית\n\t🙂"
    assert visible("a\u200bb\ud800\u2066") == "a⟨U+200B⟩b⟨U+D800⟩⟨U+2066⟩"


def test_markdown():
    assert markdown_text("a\n| *b* <c>\x1b") == "a \\| \\*b\\* \\<c\\>"
    assert markdown_code("a`b|c\n") == "`abc`"
