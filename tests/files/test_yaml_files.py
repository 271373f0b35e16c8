"""YAML: numbers, duplicates, aliases and size."""

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.yaml_files import load_yaml, parse_yaml


def test_floats_without_a_dot_are_numbers():
    assert parse_yaml("a: 1e-5\nb: -2E3\nc: e5") == {"a": 1e-5, "b": -2000.0, "c": "e5"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: not valid YAML: 'a' is given twice"),
        ("a: &x 1\nb: *x", "line 2: not valid YAML: aliases"),
        ("[1]: 2", "line 1: not valid YAML: a key must be a plain name"),
        ("a: " + "[" * 60, "nested more than 50 deep"),
        ("- 1", "holds list; a mapping of keys to values is needed"),
        ("#" * 1_000_001, "1,000,001 bytes; at most 1,000,000 are allowed"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path, text, words):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_yaml(tmp_path / "a.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
