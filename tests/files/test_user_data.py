"""Users' JSON Lines: each mistake is one error line that says where it is."""

import codecs
import gzip

import pytest
from datasets import Dataset, DatasetDict

from rlhf_marl.errors import UsageError
from rlhf_marl.files.user_data import load_rows, load_split, read_rows, text_at


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
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"{}", mtime=0)[:-4])
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


ROWS = [
    {"prompt": "NA", "chosen": "007", "rejected": "null"},
    {"prompt": 'a "quoted", line\nand another', "chosen": "é\u2028ü", "rejected": "1e5"},
    {"prompt": "x", "chosen": "True", "rejected": "=1+1"},
]
MESSAGES = [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"}]} for i in range(3)]


def only_rows(source, **options):
    return [row for _, row in load_rows(str(source), "x", **options)]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda data, file: data.to_json(file)),
        ("a.json", lambda data, file: data.to_json(file)),
        ("a.json", lambda data, file: data.to_json(file, lines=False)),
        ("a.csv", lambda data, file: data.to_csv(file)),
        ("a.tsv", lambda data, file: data.to_csv(file, sep="\t")),
        ("a.parquet", lambda data, file: data.to_parquet(file)),
        ("saved", lambda data, file: data.save_to_disk(file)),
        ("saved", lambda data, file: DatasetDict(train=data).save_to_disk(file)),
    ],
    ids=["jsonl", "json lines", "json", "csv", "tsv", "parquet", "folder", "folder of splits"],
)
def test_what_datasets_writes_is_read_as_it_was(tmp_path, name, write):
    write(Dataset.from_list(ROWS), str(tmp_path / name))
    assert only_rows(tmp_path / name) == ROWS
    if not name.endswith("sv"):
        write(Dataset.from_list(MESSAGES), str(tmp_path / f"messages-{name}"))
        assert only_rows(tmp_path / f"messages-{name}") == MESSAGES


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path, name):
    text = "prompt\nhi\n" if name == "a.csv" else '{"prompt": "hi"}\n'
    content = codecs.BOM_UTF8 + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert only_rows(tmp_path / name) == [{"prompt": "hi"}]


def test_places_name_file_and_row(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1},\n {"a": 2}]')
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    places = [place for name in ("a.json", "a.jsonl") for place, _ in load_rows(str(tmp_path / name), "x")]
    ends = ("a.json: row 1", "a.json: row 2", "a.jsonl: line 1", "a.jsonl: line 3")
    assert places == [f"{tmp_path}/{end}" for end in ends]


def test_a_file_with_another_ending_is_json_lines(tmp_path):
    (tmp_path / "prompts.txt").write_text('{"a": 1}\n')
    assert load_rows(str(tmp_path / "prompts.txt"), "x") == [(f"{tmp_path}/prompts.txt: line 1", {"a": 1})]


def test_splits_of_a_saved_folder(tmp_path):
    one, two = Dataset.from_list(ROWS[:1]), Dataset.from_list(ROWS[1:])
    DatasetDict(train=one, test=two).save_to_disk(str(tmp_path / "both"))
    assert only_rows(tmp_path / "both", split="test") == ROWS[1:]
    with pytest.raises(UsageError, match=r"x: '.*both' has no split 'dev'; choose from train, test"):
        load_rows(str(tmp_path / "both"), "x", "dev")
    DatasetDict(test=two)["test"].save_to_disk(str(tmp_path / "test"))
    (tmp_path / "test" / "state.json").write_text(
        (tmp_path / "test" / "state.json").read_text().replace('"_split": null', '"_split": "test"')
    )
    with pytest.raises(UsageError, match="has no split 'train'; choose from test"):
        load_rows(str(tmp_path / "test"), "x")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"[1]", "a.json: row 1 is not a JSON object: 1"),
        ("a.json", b"[{}", "a.json: is not JSON: "),
        ("a.json", b"[\xff]", r"a.json: not UTF-8 text \(invalid start byte at byte 1\)"),
        ("a.json", b"{", "a.json: line 1 is not JSON"),
        ("a.csv", "prompt\né".encode("latin-1"), "a.csv: not UTF-8 text"),
        ("a.csv", b"a,b\n1,2\n1", "a.csv: row 2 has 1 values for 2 columns"),
        ("a.csv", b"a\n1,2\n", "a.csv: row 1 has 2 values for 1 columns"),
        ("a.csv", b"a,a\n1,2\n", "a.csv: two columns have the same name: a, a"),
        ("a.csv", b'a\n"1', "a.csv: line 2: unexpected end of data"),
        ("a.parquet", b"nothing", "x: cannot load '.*a.parquet'"),
        ("a.csv.gz", gzip.compress(b"a\n1", mtime=0), "a.csv.gz: line 1 is not JSON: 'a'"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the library that reads it
def test_damaged_files_of_every_kind_are_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason) as caught:
        load_rows(str(tmp_path / name), "x")
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_one_line(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "a"))
    (tmp_path / "a" / "state.json").write_text("{")
    with pytest.raises(UsageError, match=r"x: cannot load '.*a': "):
        load_rows(str(tmp_path / "a"), "x")
