"""JSON Lines: intact, torn and damaged."""

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.jsonl import BadLine, complete_lines, parse_jsonl, read_jsonl


def test_each_line_is_an_object_or_a_problem():
    content = b'{"a": 1}\n\n[1]\n{\n\xff\n' + b"[" * 3000 + b'\n{"b": 2}'
    found = dict(parse_jsonl(content))
    assert (found[1], found[7]) == ({"a": 1}, {"b": 2})
    assert found[2] == BadLine("is not JSON", "")
    assert found[3] == BadLine("is not a JSON object", "[1]")
    assert found[4] == BadLine("is not JSON", "{")
    assert found[5] == BadLine("is not JSON", "\ufffd")
    assert found[6].problem == "is not JSON"
    assert list(parse_jsonl(b"")) == []


def test_numbers_that_are_not_finite_become_none_on_request():
    assert dict(parse_jsonl(b'{"a": NaN, "b": -Infinity}', nan_as_none=True)) == {1: {"a": None, "b": None}}
    assert dict(parse_jsonl(b'{"b": -Infinity}')) == {1: {"b": float("-inf")}}


def test_a_torn_last_line_is_left_out(tmp_path):
    assert complete_lines(b"a\nb") == b"a\n"
    assert complete_lines(b"b") == b""
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": 2}')
    assert read_jsonl(tmp_path / "log.jsonl") == [{"a": 1}]


def test_another_damaged_line_of_a_log_is_an_error(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    with pytest.raises(UsageError, match=r"log.jsonl: line 2 is damaged: ''$"):
        read_jsonl(tmp_path / "log.jsonl")
