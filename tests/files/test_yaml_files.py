"""YAML: numbers, duplicates, aliases and size."""

from pathlib import Path

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.yaml_files import dump_yaml, load_yaml, parse_yaml


def test_floats_without_a_dot_are_numbers():
    assert parse_yaml("a: 1e-5\nb: -2E3\nc: e5") == {"a": 1e-5, "b": -2000.0, "c": "e5"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: not valid YAML: 'a' is given twice"),
        ("a: &x 1\nb: *x", "line 2: not valid YAML: aliases"),
        ("[1]: 2", "line 1: not valid YAML: a key must be a plain name"),
        ("a: " + "[" * 60, "nested more than 50 deep"),
        ("- 1", "contains list; a mapping of keys to values is needed"),
        ("#" * 1_000_001, "1,000,001 bytes; at most 1,000,000 are allowed"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_yaml(tmp_path / "a.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: not valid YAML: 'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "contains list; a mapping"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system 1\n", "not valid YAML"),
        ("x" * 1_000_001, "at most 1,000,000"),
        ("{[1]: 2}\n", "a key must be a plain name"),
        ("\x00", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_yaml_numbers_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-5\nb: 2E3\nc: 1.5\nd: e5\n")
    assert load_yaml(path) == {"a": 1e-5, "b": 2000.0, "c": 1.5, "d": "e5"}


@pytest.mark.parametrize(
    "text", ["31e8461", "1e5", "1.5", "0x1f", "yes", "null", "2026-11-26", "a: b", "", "é\n", "12:30:45"]
)
def test_text_is_read_as_it_was_written(text):
    """A short git hash can look like a number."""
    assert parse_yaml(dump_yaml({"revision": text, "β": 1e-5})) == {"revision": text, "β": 1e-5}
