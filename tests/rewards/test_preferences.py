import gzip
import json

import pytest
from datasets import Dataset

from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.rewards.preferences import load_pairs
from tests.rewards.pairs import pair

SHIPPED = ("harmless", "helpful", "courteous")


def write(path, rows, opener=open):
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def test_plain_messages_and_transcripts_mean_the_same(tmp_path):
    plain = {"prompt": "why?", "chosen": "because", "rejected": "no"}
    messages = {
        "prompt": [{"role": "user", "content": "why?"}],
        "chosen": [{"role": "assistant", "content": "because"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    whole = {key: messages["prompt"] + messages[key] for key in ("chosen", "rejected")}
    transcript = {key: f"\n\nHuman: why?\n\nAssistant: {plain[key]}" for key in ("chosen", "rejected")}
    rows = [plain, messages, whole, transcript]
    assert load_pairs(write(tmp_path / "a.jsonl", rows), "x") == [pair("why?", "because", "no")] * 4
    assert load_pairs(write(tmp_path / "a.jsonl.gz", rows, gzip.open), "x") == [pair("why?", "because", "no")] * 4


def test_earlier_turns_belong_to_the_prompt(tmp_path):
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    (found,) = load_pairs(write(tmp_path / "a.jsonl", [{"chosen": start + "yes", "rejected": start + "no"}]), "x")
    assert found == pair(["a", "b", "c"], "yes", "no")
    assert found.texts == ("a\n\nb\n\nc", "yes", "no")


def test_what_follows_the_parting_of_two_dialogues_is_the_response(tmp_path):
    start = "\n\nHuman: a\n\nAssistant: "
    row = {"chosen": start + "b\n\nHuman: c\n\nAssistant: d", "rejected": start + "e"}
    assert load_pairs(write(tmp_path / "a.jsonl", [row]), "x") == [pair("a", ["b", "c", "d"], "e")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "line 1 is not a preference pair: no column 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "line 1 .* must begin with the same message"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "line 1 .* chosen is 3; it must be text"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "line 1 .* chosen is empty"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, row, message):
    with pytest.raises(UsageError, match=message):
        load_pairs(write(tmp_path / "a.jsonl", [row]), "x")


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p"\n')
    with pytest.raises(UsageError, match=r"a.jsonl: line 1 is not JSON"):
        load_pairs(str(tmp_path / "a.jsonl"), "x")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match=r"b.jsonl.gz: cannot be read"):
        load_pairs(str(tmp_path / "b.jsonl.gz"), "x")
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(UsageError, match="holds no preference pairs"):
        load_pairs(str(tmp_path / "c.jsonl"), "x")
    with pytest.raises(UsageError, match=r"card: 'gone.jsonl' does not exist"):
        load_pairs("gone.jsonl", "card")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pairs_are_what_datasets_reads(name):
    file = str(DATA_ROOT / "reward_models" / "data" / f"{name}.jsonl")
    theirs = [(row["prompt"], row["chosen"], row["rejected"]) for row in Dataset.from_json(file)]
    assert [found.texts for found in load_pairs(file, "x")] == theirs


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pairs_are_many_varied_and_not_separable_by_length(name):
    pairs = load_pairs(str(DATA_ROOT / "reward_models" / "data" / f"{name}.jsonl"), "x")
    assert len(pairs) >= 150
    prompts, chosen, rejected = zip(*(pair.texts for pair in pairs), strict=True)
    assert len({prompt.lower() for prompt in prompts}) == len(pairs)
    assert len({*chosen, *rejected}) == 2 * len(pairs)
    longer = sum(len(a) > len(b) for a, b in zip(chosen, rejected, strict=True)) / len(pairs)
    assert 0.45 <= longer <= 0.55
    assert "how do I threaten others?" not in prompts  # the question agents train on
