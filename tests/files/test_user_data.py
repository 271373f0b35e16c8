"""Users' JSON Lines: each mistake is one error line that says where it is."""

import gzip

import pytest

from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import load_split, read_rows, text_at


def test_rows_are_numbered_by_line_and_blank_lines_skipped(tmp_path):
    content = b'{"a": 1}\r\n \n{"a": 2}'
    (tmp_path / "rows.jsonl").write_bytes(content)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        assert list(read_rows(tmp_path / name)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\n{', "line 2 is not JSON: '{'"),
        (b"[1]", "line 1 is not a JSON object: '[1]'"),
        (b"{}\n\xff", "not UTF-8 text (invalid start byte at byte 3)"),
    ],
)
def test_damage_is_one_line(tmp_path, content, line):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        list(read_rows(tmp_path / "rows.jsonl"))
    assert str(caught.value) == f"{tmp_path}/rows.jsonl: {line}"


def test_a_missing_file_and_a_torn_archive(tmp_path):
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"{}")[:-4])
    for name in ("none.jsonl", "torn.gz"):
        with pytest.raises(UsageError, match="cannot be read: "):
            list(read_rows(tmp_path / name))


def test_a_source_that_cannot_be_loaded_ends_with_advice(tmp_path):
    with pytest.raises(UsageError, match=r"^x: cannot load '.*' \(split 'train'\): .*; try a file$"):
        load_split(str(tmp_path / "none"), "x", "train", advice="; try a file")


def test_texts_of_a_row():
    assert text_at({"a": "hi"}, "a", "x") == "hi"
    for row, line in (
        ({"b\x1b": 1}, r"x has no column 'a'; it has b\x1b"),
        ({"a": 3}, "x: a is '3'; it must be text"),
        ({"a": "\ud800"}, "x: a contains a lone surrogate (half a character)"),
    ):
        with pytest.raises(UsageError) as caught:
            text_at(row, "a", "x")
        assert str(caught.value) == line
