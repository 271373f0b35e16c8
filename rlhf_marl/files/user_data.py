"""Readers of user data: files and `datasets` sources. Each error is one line that says where it is."""

import codecs
import csv
import gzip
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlhf_marl.errors import UsageError
from rlhf_marl.files.jsonl import BadLine, parse_jsonl
from rlhf_marl.files.locate import expanded, find_data
from rlhf_marl.sanitise import first_line, printable, shortened

OnBadRow = Literal["refuse", "skip"]
Item = TypeVar("Item")

DATA_FILE = re.compile(r"\.(jsonl|jsonl\.gz|json|csv|tsv|parquet)$")
"""Ends of names that stand for a file, not for a source of the hub."""

_log = logging.getLogger("rlhf_marl")
_OFFLINE = "; offline, download it elsewhere and give the file or folder"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each non-blank line of a JSON Lines file, gzipped if its name ends with .gz.

    Raises:
        UsageError: unreadable, not UTF-8, or a line that is not a JSON object.
    """
    for number, row in parse_jsonl(_content(path)):
        if not isinstance(row, BadLine):
            yield number, row
        elif row.text.strip():
            raise UsageError(f"{path}: line {number} {row.problem}: {row.text[:60]!r}")


def _content(path: Path) -> bytes:
    """A text file's bytes, unzipped and without a byte-order mark. Raises UsageError: unreadable, or not UTF-8."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    return content.removeprefix(codecs.BOM_UTF8)


def load_split(
    name: str,
    where: str,
    split: str,
    *,
    subset: str | None = None,
    revision: str | None = None,
    advice: str = "",
    **options: Any,
) -> Any:
    """One split of a `datasets` source; raises UsageError, which ends with `advice`, if it cannot be loaded."""
    import datasets  # slow to import, and only needed here

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision, **options)
    except Exception as error:  # the library raises many unrelated types
        what = options.get("data_files", name)
        raise UsageError(f"{where}: cannot load {what!r} (split {split!r}): {first_line(error)}{advice}") from None


def load_rows(
    source: str, where: str, split: str = "train", *, subset: str | None = None, revision: str | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of each row of a user's data: `file: line 3` or `name: row 3`.

    `source` is a file, found as `find_data` finds it: a JSON array (.json), CSV or TSV with names in the first line
    (all values are text), Parquet, and JSON Lines (also gzipped) under any other name; a folder that `save_to_disk`
    wrote; or else a name or folder for `datasets.load_dataset`.

    Raises:
        UsageError: no such source or split, unreadable, not UTF-8, or a row that is no object.
    """
    folder = expanded(source)
    if DATA_FILE.search(source) or folder.is_file():
        path = find_data(source, where)
        ending = path.suffix.removeprefix(".")
        if ending not in ("json", "csv", "tsv", "parquet") or (ending == "json" and not _is_array(path)):
            return [(f"{path}: line {number}", row) for number, row in read_rows(path)]
        return [(f"{path}: row {number}", row) for number, row in enumerate(_file_rows(path, ending, where), 1)]
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        rows = _load_saved(folder, where, split)
    else:
        rows = load_split(source, where, split, subset=subset, revision=revision, advice=_OFFLINE)
    return [(f"{source}: row {number}", row) for number, row in enumerate(rows, 1)]


def _file_rows(path: Path, ending: str, where: str) -> Any:
    """The rows of a JSON array, CSV, TSV or Parquet file."""
    match ending:
        case "json":
            return _array(path)
        case "parquet":
            return load_split("parquet", where, "train", data_files=str(path))
        case _:
            return _table(path, {"csv": ",", "tsv": "\t"}[ending])


def _is_array(path: Path) -> bool:
    return _content(path).lstrip().startswith(b"[")


def _array(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(_content(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {first_line(error)}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {number} is not a JSON object: {shortened(row)}")
    return rows


def _table(path: Path, separator: str) -> list[dict[str, Any]]:
    """The rows of a CSV file. All values stay text, as they are written: "NA" is no null, and "007" no number."""
    lines = csv.reader(io.StringIO(_content(path).decode(), newline=""), delimiter=separator, strict=True)
    try:
        names, *rows = [line for line in lines if line] or [[]]
    except csv.Error as error:
        raise UsageError(f"{path}: line {lines.line_num}: {first_line(error)}") from None
    if len({*names}) < len(names):
        raise UsageError(f"{path}: two columns have the same name: {printable(', '.join(names))[:200]}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UsageError(f"{path}: row {number} has {len(row)} values for {len(names)} columns")
    return [dict(zip(names, row, strict=True)) for row in rows]


def checked(
    rows: Iterable[tuple[str, dict[str, Any]]],
    read: Callable[[dict[str, Any]], Item],
    problem: str,
    on_bad_row: OnBadRow,
) -> list[tuple[str, Item]]:
    """(place, what `read` makes of the row) of the rows for which it raises no ValueError; the others are counted.

    Raises:
        UsageError: a bad row, unless they are skipped; or all rows are bad.
    """
    good, bad = [], []
    for place, row in rows:
        try:
            good.append((place, read(row)))
        except ValueError as error:
            bad.append(f"{place} {problem}{error}")
            if on_bad_row == "refuse":
                raise UsageError(bad[0]) from None
    if bad and not good:
        raise UsageError(f"{bad[0]}; so are all rows")
    if bad:
        _log.warning(
            "on_bad_row: skip: %d of %d rows are left out; the first: %s", len(bad), len(bad) + len(good), bad[0]
        )
    return good


def _load_saved(folder: Path, where: str, split: str) -> Any:
    """One split of a folder that `save_to_disk` wrote."""
    import datasets  # slow to import, and only needed here

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises many unrelated types
        raise UsageError(f"{where}: cannot load {str(folder)!r}: {first_line(error)}") from None
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or split): found}
    if split not in splits:
        raise UsageError(f"{where}: {str(folder)!r} has no split {split!r}; choose from {', '.join(splits)}")
    return splits[split]


def text_at(row: dict[str, Any], key: str, where: str) -> str:
    """A row's text. Raises UsageError if it is missing, not text, or cannot be encoded as UTF-8."""
    if key not in row:
        raise UsageError(f"{where} has no column {key!r}; it has {printable(', '.join(row))[:200]}")
    text = row[key]
    if not isinstance(text, str):
        raise UsageError(f"{where}: {key} is {str(text)[:60]!r}; it must be text")
    try:
        check_encodable(text, key)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return text


def check_encodable(text: str, what: str) -> None:
    """Raises ValueError if the text cannot be encoded as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} contains a lone surrogate (half a character)") from None
