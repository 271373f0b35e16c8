"""`rlhf-marl reward ...` from the command line to the table."""

import json
from functools import partial

import pytest
import yaml
from datasets import Dataset, DatasetDict

import rlhf_marl
from tests.conftest import write_card


@pytest.fixture
def run(run, monkeypatch):
    """`rlhf-marl reward ...` on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    return partial(run, "reward")


@pytest.fixture
def texts(tmp_path):
    rows = [{"prompt": "p", "response": text, "id": i} for i, text in enumerate(["a", "bcd", "aeiou"])]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def length(tmp_path):
    return str(write_card(tmp_path, "length", "tests.conftest:length"))


@pytest.fixture
def vowels(tmp_path):
    return str(write_card(tmp_path, "vowels", "tests.conftest:count_vowels"))


def test_list_shows_every_shipped_card_and_a_broken_one(run, tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x\n")
    code, printed, _ = run("list", "--folder", str(tmp_path))
    assert code == 0
    for name in ("harmless", "courteous", "rm_gemma_2b", "sequence_classifier", "not cached", "not a card"):
        assert name in printed


def test_score_one_and_many(run, length, texts, tmp_path):
    code, printed, _ = run("score", length, "--prompt", "p", "--response", "abcd")
    assert (code, printed) == (0, "raw +4.0000  scaled +4.0000\n")
    code, printed, _ = run("score", length, "--input", texts)
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["id"], row["reward_raw"]) for row in rows] == [(0, 1.0), (1, 3.0), (2, 5.0)]
    assert run("score", length, "--input", texts, "--output", "out.jsonl")[0] == 0
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows
    code, _, errors = run("score", length, "--prompt", "p")
    assert (code, errors) == (2, "error: reward score: give --prompt and --response, or --input\n")


def test_calibrate_by_hand(run, length, texts):
    """Lengths 1, 3, 5: mean 3, sample deviation 2."""
    assert run("calibrate", length, "--input", texts)[1] == "scale: 2\noffset: -3\n"


def test_agreement_with_pairs_and_with_each_other(run, length, vowels, tmp_path):
    rows = [
        {"prompt": "p", "chosen": "aaaa", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "aaa"},
        {"prompt": "p", "chosen": "aa", "rejected": "bbb"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, _ = run("agreement", length, vowels, "--pairs", "pairs.jsonl", "--json", "out.json")
    assert code == 0
    numbers = json.loads((tmp_path / "out.json").read_text())
    assert numbers["length.accuracy"] == pytest.approx(1 / 3)
    assert numbers["vowels.accuracy"] == pytest.approx(2 / 3)
    assert numbers["longer_wins.accuracy"] == numbers["length.accuracy"]
    assert 0 <= numbers["coin.accuracy"] <= 1
    # Differences: length 3, -2, -1; vowels 1, -0.75, 0.5: ranks 3 1 2 and 3 1 2.
    assert numbers["length/vowels.rank_correlation"] == pytest.approx(1.0)
    assert "length / vowels" in printed
    assert printed.count("+1.000") == 3  # the correlation and both ends of its interval


def test_agreement_reads_other_columns_and_splits_and_skips_bad_rows(run, length, tmp_path):
    rows = [{"prompt": "p", "better": "aaaa", "rejected": "b"}, {"prompt": "p", "better": "", "rejected": "b"}]
    splits = DatasetDict(train=Dataset.from_list(rows[1:]), test=Dataset.from_list(rows))
    splits.save_to_disk(str(tmp_path / "pairs"))
    arguments = ["agreement", length, "--pairs", "pairs", "--split", "test", "--column", "chosen=better"]
    code, _, errors = run(*arguments)
    assert code == 2
    assert errors.splitlines()[-1] == "error: pairs: row 2 is not a preference pair: better is empty"
    code, printed, errors = run(*arguments, "--on-bad-row", "skip")
    assert code == 0
    assert "1.000" in printed
    code, _, errors = run("agreement", length, "--pairs", "pairs", "--column", "answer=better")
    assert (code, errors) == (
        2,
        "error: reward agreement: --column: 'answer' given; choose from prompt, chosen, rejected\n",
    )


def test_bad_scores_and_equal_names_are_one_line(run, length, tmp_path):
    broken = str(write_card(tmp_path, "broken", "tests.cli.test_reward:nothing"))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    code, _, errors = run("agreement", broken, "--pairs", "pairs.jsonl")
    assert (code, errors[:63]) == (3, "error: reward model 'broken' returned nan, not a finite number,")
    code, _, errors = run("agreement", length, length, "--pairs", "pairs.jsonl")
    assert (code, errors) == (
        2,
        "error: reward agreement: two cards are named 'length'; give one of them another name\n",
    )


def nothing(prompts, responses):
    return [float("nan")] * len(responses)


def test_rescore_gives_the_runs_own_rewards_again(run, tiny_config, tmp_path):
    trained = rlhf_marl.train(tiny_config, run_dir=tmp_path / "run")
    code, printed, _ = run("rescore", str(trained.path), tiny_config.agents[0].reward_model)
    assert code == 0
    rows = {(row["agent"], row["iteration"]): row["reward_scaled"] for row in map(json.loads, printed.splitlines())}
    own = trained.metrics.query("agent == 0").groupby("iteration")["reward_scaled"].mean()
    for iteration, value in own.items():
        assert rows[0, iteration] == pytest.approx(value)
    assert len(rows) == 2 * trained.config.iterations


def test_rescore_reads_dialogues_and_prompts_as_training_did(run, tiny_content, tmp_path):
    """A card that reads whole dialogues, prompts of several messages, and one that is too long and was left out."""
    (tmp_path / "scores.py").write_text(
        "def characters(prompts, completions, **_):\n    return [sum(len(m['content']) for m in p) for p in prompts]\n"
    )
    card = {"name": "characters", "kind": "callable", "function": "scores.py:characters", "scale": 1.0}
    card |= {"convention": "trl", "conversational": True, "context": "dialogue"}
    (tmp_path / "characters.yaml").write_text(yaml.safe_dump(card))
    early = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well?"}]
    asked = ["x" * 2000, "no", "yes"]
    rows = [{"prompt": [*early, {"role": "user", "content": text}]} for text in asked]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {"source": "jsonl", "path": str(tmp_path / "prompts.jsonl"), "on_bad_row": "skip"}
    content = tiny_content | {"prompts": prompts, "agents": [{"reward_model": str(tmp_path / "characters.yaml")}] * 2}
    trained = rlhf_marl.train(
        content | {"generation": {"max_new_tokens": 4, "max_prompt_tokens": 128}}, run_dir=tmp_path / "run"
    )
    code, printed, errors = run("rescore", str(trained.path), str(tmp_path / "characters.yaml"))
    assert code == 0, errors
    own = trained.metrics.groupby("iteration")["reward_scaled"].mean()
    assert own.iloc[0] > len("hiwell?no")
    for row in map(json.loads, printed.splitlines()):
        assert row["reward_scaled"] == pytest.approx(own[row["iteration"]])


def test_training_into_a_folder_that_exists_is_refused(run, tmp_path):
    code, _, errors = run("train", "reward_models/trained_helpful.yaml", "--to", str(tmp_path))
    assert (code, errors) == (2, f"error: --to: {str(tmp_path)!r} already exists\n")


def test_training_another_kind_is_refused(run, length):
    code, _, errors = run("train", length)
    assert code == 2
    assert "is a card of kind callable; only cards of kind trained can be trained" in errors


def test_gate_prints_a_row_for_each_kind_and_fails_below(run, length, tmp_path):
    """By length, an answer beats shorter junk, its cut and the question, and ties with its words in another order."""
    answer = "one two three four five six seven eight nine ten"
    rows = [{"prompt": "p", "chosen": answer, "rejected": "x" * n, "junk": "short"} for n in range(1, 21)]
    (tmp_path / "gate.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, printed, errors = run("gate", length, "--pairs", "gate.jsonl")
    assert code == 2
    shown = [line.split("│")[1:4] for line in printed.splitlines() if "│" in line]
    table = {kind.strip(): (share.strip(), pairs.strip()) for kind, share, pairs in shown}
    assert table["short"] == ("1.000", "20")
    assert table["cut"] == table["echo"] == ("1.000", "1")
    assert table["shuffled"] == ("0.000", "1")
    assert errors.startswith("error: reward gate: reward model 'length' fails its gate: it prefers a fluent answer to ")
    assert "shuffled in 0% of 1 pairs" in errors
    assert errors.count("\n") == 1
    code, _, errors = run("gate", length, "--pairs", "texts.jsonl")
    assert (code, errors) == (2, "error: reward gate: --pairs: 'texts.jsonl' does not exist\n")
