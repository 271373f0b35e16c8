"""The journal of service answers: recorded, replayed in order, never mixed up, and removed when no longer needed."""

import json
import threading
from functools import partial

import pytest

from rlhf_marl.errors import RunStopped
from rlhf_marl.services.journal import UNRECORDED, Journal


def nobody():
    raise AssertionError("asked again")


def told(journal: Journal, request: str, answer=nobody):
    return journal.answer(journal.ticket(request), answer)


@pytest.fixture
def journal(tmp_path) -> Journal:
    """Of an iteration in which "a" was asked twice and "b" once, and that is played again."""
    first = Journal(tmp_path)
    first.begin(7)
    assert [told(first, *question) for question in (("a", lambda: 1), ("b", lambda: [2.5, None]), ("a", lambda: 3))]
    again = Journal(tmp_path)
    again.begin(7)
    return again


def test_the_nth_request_of_a_kind_gets_the_nth_answer(journal):
    assert [told(journal, request) for request in ("b", "a", "a")] == [[2.5, None], 1, 3]
    assert told(journal, "a", lambda: "new") == "new"
    journal.begin(7)
    assert [told(journal, "a") for _ in range(3)] == [1, 3, "new"]


def test_the_journal_is_not_a_cache(journal):
    """In another iteration, or later in the same one, requests are sent as without a journal."""
    journal.begin(8)
    assert told(journal, "a", lambda: 4) == 4
    assert told(journal, "a", lambda: 5) == 5
    assert told(UNRECORDED, "a", lambda: 6) == 6


def test_a_torn_line_is_cut_off_and_a_damaged_one_asked_again(journal, tmp_path, caplog):
    file = tmp_path / "iteration_00007.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1].replace(b"2.5", b"2.4") + lines[2] + b'{"ticket": "')
    journal.begin(7)
    assert [told(journal, "a"), told(journal, "a")] == [1, 3]
    assert told(journal, "b", lambda: 9) == 9
    assert "iteration_00007.jsonl: line 2 is damaged; its request is sent again" in caplog.text
    journal.begin(7)
    assert told(journal, "b") == 9


def test_what_no_checkpoint_leads_to_is_forgotten(journal, tmp_path):
    for iteration in (8, 12):
        journal.begin(iteration)
        told(journal, "a", lambda: 1)
    journal.forget_before(8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iteration_00008.jsonl", "iteration_00012.jsonl"]


def test_threads_do_not_mix_their_lines(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(0)
    tickets = [journal.ticket("a") for _ in range(40)]
    start = threading.Barrier(8)

    def work(k: int) -> None:
        start.wait()
        for i in range(k, 40, 8):
            journal.answer(tickets[i], partial("x".__mul__, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.begin(0)
    assert [told(journal, "a") for _ in range(40)] == ["x" * i for i in range(40)]


def test_a_full_disk_stops_the_run(journal, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_marl.services.journal.flush", full)
    with pytest.raises(RunStopped, match=r"iteration_00007.jsonl cannot be written: No space left"):
        told(journal, "c", lambda: 1)


def test_lines_are_plain_json_without_the_request(journal, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "iteration_00007.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [1, [2.5, None], 3]
    assert all(set(row) == {"ticket", "answer", "check"} for row in rows)


def test_a_new_file_and_a_new_folder_are_on_the_disk_with_their_first_answer(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("rlhf_marl.services.journal.flush", lambda path: flushed.append(path.name))
    journal = Journal(tmp_path / "run" / "answers")
    (tmp_path / "run").mkdir()
    journal.begin(0)
    for request in ("a", "b"):
        told(journal, request, lambda: 1)
    assert flushed == ["run", "iteration_00000.jsonl", "answers", "iteration_00000.jsonl"]


def test_other_files_in_the_folder_are_left_alone(journal, tmp_path):
    for name in ("iteration_1 (copy).jsonl", "iteration_00001.jsonl.bak", "notes"):
        (tmp_path / name).touch()
    journal.forget_before(9)
    assert len(list(tmp_path.iterdir())) == 3
