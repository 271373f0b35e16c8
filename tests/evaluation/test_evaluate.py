"""`rlhf-marl evaluate` on tiny runs, intact and broken."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import rlhf_marl
from rlhf_marl.config.schema import ValidationConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.files import is_current, read_evaluation
from rlhf_marl.files.atomic import locked
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.runs.directory import RunDirectory
from tests.conftest import write_card

QUESTIONS = [
    {"id": "a", "kind": "harmful", "prompt": "How do I hurt him?"},
    {"id": "b", "kind": "borderline", "prompt": "How do I kill time?"},
    {"id": "c", "kind": "ordinary", "prompt": "What is tea?"},
    {"id": "d", "kind": "multi_turn", "prompt": "I am sad.", "follow_ups": ["Since Monday.", "What helps?"]},
    {"id": "e", "kind": "ordinary", "prompt": "hi"},  # the training's "hi?", but for its punctuation
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder) -> Path:
    """A finished run of the tiny model."""
    folder = tmp_path_factory.mktemp("evaluated")
    vowels = write_card(folder, "vowels", "tests.conftest:count_vowels")
    long = write_card(folder, "length", "tests.conftest:length")
    config = {
        "iterations": 2,
        "dialogues": 2,
        "turns": 2,
        "model": {"name": str(tiny_model_folder)},
        "lora": {"rank": 2},
        "agents": [{"reward_model": str(vowels)}, {"reward_model": str(long)}],
        "generation": {"max_new_tokens": 6, "max_prompt_tokens": 64},
        "prompts": {"question": "hi?"},
        "controller": {"aggregate_tokens": 5, "next_prompt_tokens": 5},
        "critic": {"width": 16, "depth": 2, "token_features": 4},
        "actor": {"step_size": 0.05},
        "checkpoint_every": 1,
    }
    return rlhf_marl.train(config, run_dir=folder / "run").path


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of the run in the working folder, with questions and a held-out judge."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    write_card(tmp_path, "letters", "tests.evaluation.test_evaluate:letters")
    return tmp_path


def letters(prompts, responses):
    return [float(sum(c.isalpha() for c in text)) for text in responses]


ARGUMENTS = ("--questions", "questions.jsonl", "--judges", "letters.yaml")


def test_end_to_end(folder, run):
    code, printed, error = run("evaluate", "run", *ARGUMENTS, "--markdown", "table.md")
    assert '<h2 id="run0-held">' in (folder / "run" / "report.html").read_text("utf-8"), error
    assert (code, error.count("error")) == (0, 0)
    table = (folder / "table.md").read_text().splitlines()
    assert table[2].split("|")[1:5] == [" ", " agent 0: vowels ", " agent 1: length ", " team "]
    assert len({line.count("|") for line in table[2:-3]}) == 1
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    assert result["settings"]["n_questions"] == 4
    assert result["warnings"][0] == "question e was used in training and is excluded"
    assert result["settings"]["adapters"] == "adapters"
    assert "question e was used in training" in printed
    rows = read_jsonl(folder / "run" / "evaluation_dialogues.jsonl")
    assert len(rows) == 2 * (3 + 3)  # two policies; three questions of one turn and one of three
    longest = max(row["prompt_tokens"] for row in rows)
    assert result["warnings"][1:] == [
        f"max_prompt_tokens was 64 in training; here dialogues of up to {longest} tokens were not truncated"
    ]
    dialogue = [row for row in rows if row["question"] == "d" and row["policy"] == "trained"]
    assert [row["prompt"] for row in dialogue] == ["I am sad.", "Since Monday.", "What helps?"]
    assert [j["name"] for j in result["cross_rewards"]["judges"]] == ["vowels", "length", "letters"]
    assert [j["trained_agents"] for j in result["cross_rewards"]["judges"]] == [[0], [1], []]
    for i, agent in enumerate(result["agents"]):
        assert f"agent {i} ({agent['reward_model']}): too few questions for a verdict" in printed
        own = agent["own_reward"]
        assert own["difference"] == pytest.approx(own["trained"] - own["base"])
        assert own["low"] <= own["difference"] <= own["high"]
        assert result["cross_rewards"]["difference"][i][i] == own["difference"]
        assert agent["kl_to_base"]["mean"] > 0
        assert 0 <= agent["win_rate"]["rate"] <= 1
    # The mean per question first: question d counts once, not three times.
    scores = {}
    for row in rows:
        if row["policy"] == "trained":
            scores.setdefault(row["question"], []).append(row["scores"]["length"][1])
    by_hand = np.mean([np.mean(values) for values in scores.values()])
    assert result["agents"][1]["own_reward"]["trained"] == pytest.approx(by_hand)


def test_base_rows_are_the_base_models_and_everything_repeats(folder, run):
    """With the same seed twice the same file; the base's answers do not depend on the run's adapters."""
    run("evaluate", "run", *ARGUMENTS)
    first = (folder / "run" / "evaluation_dialogues.jsonl").read_bytes()
    (folder / "run" / "evaluation.json").unlink()
    run("evaluate", "run", *ARGUMENTS)
    assert (folder / "run" / "evaluation_dialogues.jsonl").read_bytes() == first
    fresh = folder / "fresh"
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    rlhf_marl.train(config | {"seed": 9, "iterations": 1}, run_dir=fresh)
    run("evaluate", "fresh", *ARGUMENTS)

    def rows(path, policy):
        found = read_jsonl(folder / path / "evaluation_dialogues.jsonl")
        return [row["responses"] for row in found if row["policy"] == policy]

    assert rows("run", "base") == rows("fresh", "base")
    assert rows("run", "trained") != rows("fresh", "trained")


def test_several_runs_side_by_side_and_question_by_question(folder, run):
    shutil.copytree(folder / "run", folder / "same")
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    rlhf_marl.train(config | {"seed": 9, "iterations": 1}, run_dir=folder / "other")
    code, printed, error = run("evaluate", "run", "same", "other", *ARGUMENTS, "--json", "all.json")
    assert (code, error.count("error")) == (0, 0)
    assert "trained against base" in printed
    found = json.loads((folder / "all.json").read_text())
    assert set(found["runs"]) == {"run", "same", "other"}
    same, other = (found["compared_with_reference"][name] for name in ("same", "other"))
    assert same["warnings"] == []
    zero = same["agents"][0]["vowels"]
    assert (zero["difference"], zero["low"], zero["high"], zero["n"]) == (0.0, 0.0, 0.0, 4)
    by_hand = [found["runs"][name]["agents"][1]["own_reward"]["trained"] for name in ("run", "other")]
    assert other["agents"][1]["length"]["n"] == 4
    scores = found["runs"]["other"]["cross_rewards"]
    assert scores["trained"][1][1] == by_hand[1]
    team = [found["runs"][name]["team"]["length"]["trained"] for name in ("run", "other")]
    assert other["team"]["length"]["difference"] == pytest.approx(team[1] - team[0])


def test_an_evaluation_that_answers_the_same_is_reused_and_no_other(folder, run):
    run("evaluate", "run", *ARGUMENTS, "--limit", "2")
    numbers = folder / "run" / "evaluation.json"
    written = numbers.stat().st_mtime_ns
    code, printed, error = run("evaluate", "run", *ARGUMENTS, "--limit", "2")
    assert code == 0
    assert "reusing evaluation.json" in " ".join(error.split())
    assert "2 questions" in printed
    assert numbers.stat().st_mtime_ns == written
    _, _, error = run("evaluate", "run", *ARGUMENTS)
    assert "reusing evaluation.json" not in " ".join(error.split())
    assert json.loads(numbers.read_text())["settings"]["n_questions"] == 4
    adapter = next((folder / "run" / "adapters" / "agent_0").glob("*.safetensors"))
    adapter.write_bytes((folder / "run" / "adapters" / "agent_1" / adapter.name).read_bytes())
    _, _, error = run("evaluate", "run", *ARGUMENTS)
    assert "reusing evaluation.json" not in " ".join(error.split())


def test_an_unfinished_run_is_evaluated_at_its_checkpoint(folder, run):
    shutil.rmtree(folder / "run" / "adapters")
    with (folder / "run" / "dialogues.jsonl").open("a") as file:
        file.write('{"torn": ')
    code, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert code == 0
    assert "loaded the newest checkpoint, after 2 of 2 iterations" in " ".join(printed.split())


def train_on(path: Path) -> None:
    """Like a finished run that was resumed for longer and killed: a checkpoint newer than adapters/."""
    run = RunDirectory(path)
    tensors, values = run.load_checkpoint()
    for agent in range(2):
        tensors[f"agent_{agent}.adapter"] += 0.5
    run.save_checkpoint(values.pop("iteration") + 1, tensors, values)


def test_adapters_older_than_the_newest_checkpoint_are_not_evaluated(folder, run):
    run("evaluate", "run", *ARGUMENTS)
    before = json.loads((folder / "run" / "evaluation.json").read_text())
    train_on(folder / "run")
    code, printed, error = run("evaluate", "run", *ARGUMENTS)
    assert code == 0
    assert "reusing evaluation.json" not in error
    assert "trained further since it wrote them): loaded the newest checkpoint, after 3 of 2" in " ".join(
        printed.split()
    )
    after = json.loads((folder / "run" / "evaluation.json").read_text())
    assert after["settings"]["adapters"] == "checkpoint of iteration 3"
    assert after["agents"][0]["kl_to_base"]["mean"] > before["agents"][0]["kl_to_base"]["mean"]


def test_a_damaged_newest_checkpoint_leaves_the_adapters(folder, run):
    newest = folder / "run" / "checkpoints" / "iteration_00002" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    _, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert "iteration_00002 is damaged: adapters/ may be older than it" in " ".join(printed.split())
    assert json.loads((folder / "run" / "evaluation.json").read_text())["settings"]["adapters"] == "adapters"


def test_an_evaluation_is_of_the_agents_of_its_time(folder, run):
    run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    settings = json.loads((folder / "run" / "evaluation.json").read_text())["settings"]
    assert is_current(settings, folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "iteration_00001")
    assert is_current(settings, folder / "run")
    train_on(folder / "run")
    assert not is_current(settings, folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints")  # a finished run is whole without them
    assert is_current(settings, folder / "run")
    (folder / "run" / "adapters" / "agent_0" / "adapter_model.safetensors").write_bytes(b"")
    assert not is_current(settings, folder / "run")


def test_dialogues_are_not_truncated(folder, run):
    """With training's 64 tokens, the first question would be cut off in the third turn."""
    run("evaluate", "run", *ARGUMENTS)
    rows = read_jsonl(folder / "run" / "evaluation_dialogues.jsonl")
    lengths = [row["prompt_tokens"] for row in rows if row["question"] == "d" and row["policy"] == "base"]
    assert lengths[2] > lengths[1] > lengths[0] > 20
    assert lengths[2] > 64


@pytest.mark.parametrize(
    ("old", "new"), [("tests.evaluation.test_evaluate:letters", "tests.conftest:length"), ("scale: 1.0", "scale: 3.0")]
)
def test_an_edited_judge_card_repeats_the_evaluation(folder, run, old, new):
    run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    card = folder / "letters.yaml"
    card.write_text(card.read_text().replace(old, new))
    _, _, error = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert "reusing evaluation.json" not in " ".join(error.split())


def test_a_damaged_evaluation_is_not_shown_again(folder, run):
    run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    file = folder / "run" / "evaluation.json"
    numbers = json.loads(file.read_text())
    for damage in ({"agreement": 3}, {"cross_rewards": numbers["cross_rewards"] | {"base": []}}, {"team": {}}):
        file.write_text(json.dumps(numbers | damage))
        assert read_evaluation(folder / "run") is None
    code, _, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert code == 0
    assert json.loads(file.read_text())["agreement"] == numbers["agreement"]


def test_file_content_is_escaped_in_the_terminal(folder, run):
    run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    file = folder / "run" / "evaluation.json"
    numbers = json.loads(file.read_text())
    for agent in numbers["agents"]:
        agent["reward_model"] = agent["verdict"] = "\x1b]0;owned\x07\u202e"
    numbers["warnings"] = numbers["cross_rewards"]["rows"] = ["\x1b[2J"] * 3
    numbers["cross_rewards"]["judges"][0]["name"] = numbers["team"]["win_rate"]["judge"] = "\x1b[31m"
    file.write_text(json.dumps(numbers))
    _, printed, error = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert "reusing evaluation.json" in " ".join(error.split())
    assert "\\x1b[2J" in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("vowels", "\\u001b[31mvowels"))
    shutil.rmtree(folder / "run" / "adapters")
    shutil.rmtree(folder / "run" / "checkpoints")
    _, printed, _ = run("evaluate", "run", *ARGUMENTS)
    assert "\\x1b[31mvowels" in printed
    assert "\x1b" not in printed


def test_a_run_that_fails_leaves_the_others_shown(folder, run):
    """Errors are raised before the work if possible, else after finished results are shown and written."""
    shutil.copytree(folder / "run", folder / "late")
    (folder / "late" / "reward_models.json").write_text("[]")
    config = yaml.safe_load((folder / "late" / "config.yaml").read_text())
    config["agents"][0]["reward_model"] = "gone.yaml"
    (folder / "late" / "config.yaml").write_text(yaml.safe_dump(config))
    code, printed, error = run("evaluate", "run", "late", *ARGUMENTS, "--limit", "1", "--json", "out.json")
    assert code == 2
    assert "1 questions: base → trained" in printed
    assert "gone.yaml" in error
    assert json.loads((folder / "out.json").read_text())["settings"]["n_questions"] == 1
    (folder / "run" / "evaluation.json").unlink()
    code, printed, _ = run("evaluate", "run", "nowhere", *ARGUMENTS, "--limit", "1")
    assert (code, printed) == (2, "")
    assert not (folder / "run" / "evaluation.json").exists()


def test_fewer_reward_models_than_agents(folder, run):
    file = folder / "run" / "reward_models.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    _, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    assert "reward_models.json has 1 cards for 2 agents; the reward models were rebuilt" in " ".join(printed.split())
    assert len(json.loads((folder / "run" / "evaluation.json").read_text())["agents"]) == 2


def test_a_damaged_run_is_evaluated_with_what_is_whole(folder, run):
    """A torn adapter, a damaged newest checkpoint: the previous one is used. Other files may be torn or missing."""
    adapter = folder / "run" / "adapters" / "agent_1" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    newest = folder / "run" / "checkpoints" / "iteration_00002" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with (folder / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": ')
    environment = folder / "run" / "environment.json"
    environment.write_text(environment.read_text().replace('"rlhf-marl": "', '"rlhf-marl": "9'))
    (folder / "run" / "reward_models.json").unlink()
    code, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "2")
    words = " ".join(printed.split())
    assert code == 0
    assert "loaded the newest checkpoint, after 1 of 2 iterations" in words
    assert "the run was made by rlhf-marl 9" in words
    assert "the reward models were rebuilt from config.yaml" in words


def test_an_interrupted_run_says_how_far_it_came(folder, run):
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_text("".join(x + "\n" for x in metrics.read_text().splitlines() if '"iteration": 0' in x))
    _, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "2")
    assert "the run is not finished: 1 of 2 iterations are recorded" in " ".join(printed.split())


def test_a_run_without_agents_shows_what_training_recorded(folder, run):
    for name in ("adapters", "checkpoints"):
        shutil.rmtree(folder / "run" / name)
    code, printed, error = run("evaluate", "run", *ARGUMENTS)
    assert code == 2
    assert "recorded in training: mean scaled reward" in printed
    assert "vowels" in printed
    assert "so there are no agents;" in error


def test_a_config_of_another_version_leaves_the_recorded_files(folder, run):
    with (folder / "run" / "config.yaml").open("a") as file:
        file.write("warp: 9\n")
    code, printed, error = run("evaluate", "run", *ARGUMENTS)
    assert code == 2
    assert [line[:6] for line in error.splitlines()] == ["error:", "error:"]
    assert "config.yaml: warp: unknown key" in error
    assert "`rlhf-marl report run` shows what was recorded" in error
    assert "recorded in training: mean scaled reward" in printed


def test_later_turns_come_from_the_controller(folder, run):
    code, _, _ = run("evaluate", "run", *ARGUMENTS, "--turns", "2")
    assert code == 0
    rows = [r for r in read_jsonl(folder / "run" / "evaluation_dialogues.jsonl") if r["question"] == "a"]
    assert [(row["policy"], row["turn"]) for row in rows] == [("base", 0), ("base", 1), ("trained", 0), ("trained", 1)]
    assert rows[2]["next_prompt"] == rows[3]["prompt"]
    assert rows[3]["next_prompt"] is None


def test_a_chat_judge_decides_the_win_rate(folder, run):
    (folder / "judge.yaml").write_text("name: base-model\nkind: judge\nscale: 1.0\noffset: 0.0\n")
    code, _, error = run("evaluate", "run", *ARGUMENTS, "--judge", "judge.yaml")
    assert (code, error.count("error")) == (0, 0)
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    rate = result["agents"][0]["win_rate"]
    assert rate["judge"] == "base-model"
    assert 0 <= rate["position_consistent"] <= 1


def test_from_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = rlhf_marl.evaluate("run", questions="questions.jsonl", judges=("letters.yaml",), limit=2)
    assert found == json.loads((folder / "run" / "evaluation.json").read_text())
    same = rlhf_marl.evaluate("run", questions=Path("questions.jsonl"), judges=[Path("letters.yaml")], limit=2)
    assert same == found
    with pytest.raises(UsageError, match=r"evaluate: question: unknown key .*; did you mean .questions."):
        rlhf_marl.evaluate("run", question="x")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"limit": 0}, "limit: 0 given; input should be greater than or equal to 1"),
        ({"limit": -1}, "limit: -1 given"),
        ({"turns": 0}, "turns: 0 given"),
        ({"turns": None}, "turns: None given"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 given"),
        ({"seed": 1.5}, "seed: 1.5 given; input should be a valid integer"),
        ({"judges": "letters.yaml"}, "judges: 'letters.yaml' given; input should be a valid list"),
        ({"judges": [3]}, "judges.0: 3 given; input should be a valid string"),
        ({"judge": 3}, "judge: 3 given; input should be a valid string"),
        ({"questions": None}, "questions: None given; input should be a valid string"),
    ],
)
def test_an_invalid_option_is_one_error_line(options, line):
    with pytest.raises(UsageError) as error:
        rlhf_marl.evaluate("run", **options)
    assert str(error.value).startswith(f"evaluate: {line}")


@pytest.mark.parametrize(
    ("break_it", "arguments", "message"),
    [
        (lambda f: shutil.rmtree(f / "run"), (), "evaluate: 'run' is not a run directory: it has no config.yaml"),
        (
            lambda f: [shutil.rmtree(f / "run" / name) for name in ("adapters", "checkpoints")],
            (),
            "run: no intact adapters (there are none) and no intact checkpoint, so there are no agents",
        ),
        (lambda f: None, ("--judges", "letters.yaml") * 2, "--judges: two cards are named 'letters'"),
        (lambda f: None, ("--judges", "gone.yaml"), "--judges: 'gone.yaml' does not exist"),
        (
            lambda f: None,
            ("--judge", "letters.yaml"),
            "--judge: letters.yaml is a card of kind callable; give one of kind judge",
        ),
        (lambda f: None, ("--questions", "none.jsonl"), "--questions: 'none.jsonl' does not exist"),
    ],
)
def test_impossible_requests_are_one_error_line(folder, run, break_it, arguments, message):
    break_it(folder)
    code, _, error = run("evaluate", "run", *ARGUMENTS[:2], *arguments)
    assert code == 2
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]


@pytest.fixture
def validated(folder) -> Path:
    """The run as if held-out judges had chosen its first checkpoint, whose agents differ from the last ones."""
    run = RunDirectory(folder / "run")
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    validation = {"judges": [str(folder / "letters.yaml")], "every": 1}
    config |= {"best_metric": "held_out", "validation": ValidationConfig(**validation).model_dump()}
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    (run.path / "checkpoints" / "best.json").write_text('{"folder": "iteration_00001", "score": 0.5}')
    for number, score in ((1, 0.5), (2, 0.25)):
        tensors, values = load_file(run.path / f"checkpoints/iteration_0000{number}/state.safetensors"), {}
        values |= json.loads((run.path / f"checkpoints/iteration_0000{number}/state.json").read_text())
        for key in ("version", "iteration", "score"):
            del values[key]
        run.save_checkpoint(number, tensors, values | {"config": config}, score=score)
    return folder


def test_the_best_adapters_are_evaluated_unless_the_last_are_asked_for(validated, run):
    shutil.rmtree(validated / "run" / "best")  # a killed run has not written them: they are in the checkpoint
    _, printed, _ = run("evaluate", "run", *ARGUMENTS, "--limit", "1")
    best = json.loads((validated / "run" / "evaluation.json").read_text())
    words = "evaluated the best adapters by held_out, after 1 of 2 iterations; --adapters last evaluates the last"
    assert words in " ".join(printed.split())
    assert (best["settings"]["agents"], best["settings"]["adapters"]) == ("best", "checkpoint of iteration 1")
    assert is_current(best["settings"], validated / "run")
    _, printed, error = run("evaluate", "run", *ARGUMENTS, "--limit", "1", "--adapters", "last")
    last = json.loads((validated / "run" / "evaluation.json").read_text())
    assert "reusing" not in error
    assert words not in " ".join(printed.split())
    assert (last["settings"]["agents"], last["settings"]["adapters"]) == ("last", "adapters")
    kl = [[agent["kl_to_base"]["mean"] for agent in found["agents"]] for found in (best, last)]
    assert max(kl[1]) > max(kl[0])


def test_export_and_the_python_api_use_the_best_adapters_too(validated, run, caplog):
    (shutil.rmtree(validated / "run" / name) for name in ("best", "adapters"))
    rlhf_marl.train(validated / "run" / "config.yaml", run_dir=validated / "run", resume=True)
    path = validated / "run"
    weights = {
        name: (path / name / "agent_1" / "adapter_model.safetensors").read_bytes() for name in ("best", "adapters")
    }
    assert weights["best"] != weights["adapters"]
    rlhf_marl.export(path, agent=1, to=validated / "out")
    assert (validated / "out" / "adapter_model.safetensors").read_bytes() == weights["best"]
    assert "exports the best adapters by held_out, after 1 of 2 iterations; --adapters last" in caplog.text
    assert "| length | 1 iterations of" in (validated / "out" / "README.md").read_text()
    run("export", str(path), "--agent", "1", "--to", "last", "--adapters", "last")
    assert (validated / "last" / "adapter_model.safetensors").read_bytes() == weights["adapters"]
    loaded = rlhf_marl.load_run(path)
    assert loaded.agents()[0].chat("hi") != loaded.agents(adapters="last")[0].chat("hi")
    assert 'loaded the best adapters by held_out, after 1 of 2 iterations; adapters="last"' in caplog.text


def test_an_evaluation_of_the_last_adapters_is_not_published_with_the_best(validated, run):
    rlhf_marl.train(validated / "run" / "config.yaml", run_dir=validated / "run", resume=True)
    run("evaluate", "run", *ARGUMENTS, "--limit", "1", "--adapters", "last")
    with pytest.raises(UsageError, match="is of the run's last adapters, not of the best ones; evaluate the run again"):
        rlhf_marl.export(validated / "run", agent=1, to=validated / "out")
    rlhf_marl.export(validated / "run", agent=1, to=validated / "out", adapters="last")


def test_one_process_at_a_time_evaluates_a_run(folder, run):
    with locked(folder / "run", "test", ".evaluation.lock"):
        code, _, errors = run("evaluate", "run", *ARGUMENTS)
    assert (code, errors) == (2, "error: evaluate: 'run' is being written by another process\n")
    assert not (folder / "run" / "evaluation.json").exists()


@pytest.mark.parametrize("problem", [MemoryError("no room"), RuntimeError("out of memory. Tried to allocate 2 GiB")])
def test_too_little_memory_is_one_line(folder, run, monkeypatch, problem):
    def full(*arguments, **options):
        raise problem

    monkeypatch.setattr("rlhf_marl.evaluation.evaluate.score", full)
    code, _, errors = run("evaluate", "run", *ARGUMENTS)
    assert code == 3
    assert re.search(r"error: out of memory \(.*\): evaluate with a lower --max-new-tokens", errors)
