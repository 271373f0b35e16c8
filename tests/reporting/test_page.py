"""The page as text: intact and damaged runs and those of other versions; no file's content becomes markup."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from rlhf_marl.api import train
from rlhf_marl.errors import UsageError
from rlhf_marl.reporting.page import moving_average, refresh_report, team_rewards, write_report
from rlhf_marl.reporting.run_record import read_run
from tests.conftest import write_card
from tests.reporting.runs import HOSTILE, ROOT, write_run


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path / "run")


def page_of(*paths, out=None):
    return write_report(list(paths), out).read_text("utf-8")


def words(page):
    """The page without its scripts and style."""
    return re.sub(r"<(script|style)[ >].*?</\1>", "", page, flags=re.DOTALL)


def test_moving_average_by_hand():
    assert moving_average([1, 2, 3, 4, 5, 11], 5) == [1, 1.5, 2, 2.5, 3, 5]


def test_the_team_has_a_curve_of_its_own(run_dir):
    assert team_rewards([[1.0, math.nan, math.nan], [2.0, 4.0, math.nan]])[:2] == [1.5, 4.0]
    assert math.isnan(team_rewards([[math.nan], [math.nan]])[0])
    page = page_of(run_dir)
    # Agents have r, r - 1 and r + 1 with r = 0, 0.1, ... in successive dialogues; the average is over five.
    assert data_of(page)["runs"][0]["team"][:7] == [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]
    assert "The dashed line is the team: the mean over agents." in words(page)
    (run_dir / "dialogues.jsonl").write_text("")
    assert data_of(page_of(run_dir))["runs"][0]["team"] == []


def test_the_page_shows_verdicts_tables_and_health(run_dir):
    text = words(page_of(run_dir))
    assert text.count("likely hacked") == 3
    assert "0.25 → 1.50" in text
    assert "[+1.15, +1.35]" in text
    assert "last layer are dead" in text
    assert "policy entropy is below 0.3" in text
    assert "in which the controller fell back: 0.00 → 0.25 [+0.15, +0.35]" in text
    assert "the trained team's answer, own reward (scaled): 0.25 → 0.75 [+0.40, +0.60]" in text
    assert "Zhiyao Zhang" in text


def validate(run_dir, *, best="held_out") -> None:
    """Validations after 0, 2 and 4 of nine iterations of two dialogues; the second is best, the last ended the run."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config |= {"iterations": 9, "validation": {"judges": ["j.yaml"], "every": 2}, "best_metric": best}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (run_dir / "checkpoints" / "iteration_00002").mkdir(parents=True)
    (run_dir / "checkpoints" / "best.json").write_text('{"folder": "iteration_00002", "score": 0.5}')
    lines = [
        {"iteration": i, "team": team, "agents": [team] * 3, "early_stop": stop}
        for i, team, stop in ((0, 0.25, None), (2, 0.5, None), (4, -0.125, "ended <b>early</b>"))
    ]
    (run_dir / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_held_out_curve_stands_beside_the_training_reward(tmp_path):
    run_dir = write_run(tmp_path / "run", iterations=4)
    validate(run_dir)
    page = page_of(run_dir)
    text = words(page)
    assert "team +0.250 after 0 iterations, best +0.500 after 2, last -0.125 after 4." in text
    assert "evaluate, export and the Python API use the best adapters by held_out, after 2 of 9 iterations." in text
    assert "The dotted line is the team's answers to the held-out questions." in text
    assert '"held_out":{"x":[0,4,8],"y":[0.25,0.5,-0.125]}' in page
    assert "ended &lt;b&gt;early&lt;/b&gt;" in text
    assert "not finished" not in text


def test_damaged_validations_are_counted_and_without_them_there_is_no_curve(run_dir):
    assert '"held_out":{"x":[],"y":[]}' in page_of(run_dir)
    validate(run_dir, best="reward_scaled")
    with (run_dir / "validation.jsonl").open("a") as file:
        file.write('{"iteration": 6, "team": null, "agents": [], "early_stop": null}\n')
    text = words(page_of(run_dir))
    assert "validation.jsonl: 1 damaged lines were skipped; the first is line 4" in text
    assert "Python API use" not in text


def test_early_and_late_answers_to_one_question_are_on_the_first_screen(tmp_path):
    write_run(tmp_path / "run")
    asked = [json.loads(line) for line in (tmp_path / "run" / "dialogues.jsonl").read_text().splitlines()]
    early, late = asked[0], asked[0] | {"iteration": asked[-1]["iteration"] + 3, "aggregate": "<b>late</b> together"}
    (tmp_path / "run" / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*asked, late]))
    page = page_of(tmp_path / "run")
    table = page[page.index("Early and late answers to") : page.index("Reward in training")]
    assert f"Iteration {early['iteration'] + 1}</th>" in table
    assert f"Iteration {late['iteration'] + 1}</th>" in table
    assert "&lt;b&gt;late&lt;/b&gt; together" in table


def test_same_files_give_the_same_bytes(run_dir, tmp_path):
    first = page_of(run_dir, out=tmp_path / "a.html")
    assert first == page_of(run_dir, out=tmp_path / "b.html")


def test_without_an_evaluation_says_how_to_get_one(tmp_path):
    text = words(page_of(write_run(tmp_path / "run", evaluated=False)))
    assert f"rlhf-marl evaluate {tmp_path / 'run'}" in text
    assert "its reward rose: " in text
    assert "+0.05 → +1.05" in re.sub(r"<.*?>", "", text)  # fifths of 12 dialogues are two: 0, 0.1 and 1, 1.1


def test_content_policy_names_exactly_the_scripts_of_the_page(run_dir):
    page = page_of(run_dir)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1).replace("&#39;", "'")
    found = re.findall(r"<script(?: type=\"text/plain\" id=\"plotly\")?>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in found]
    allowed = re.search(r"script-src ([^;]*)", policy).group(1).split()
    assert allowed == [f"'sha256-{value}'" for value in hashes]
    assert len(allowed) == 2
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy


def test_hostile_text_is_never_markup(tmp_path):
    page = page_of(write_run(tmp_path / "run", texts=HOSTILE))
    assert page.count("</script>") == 3  # data, plotly.js and report.js
    assert not re.search(r"<(b|img|a href='|i)[ >]", words(page))
    assert "&lt;img src=x" in page
    assert "\u202e" not in page.split('id="plotly"')[0]
    assert "\x1b" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    said = data["runs"][0]["training"][0]["turns"][0]["responses"]
    assert said[0] == HOSTILE[0]
    assert said[2].startswith("⟨U+202E⟩gnp.exe ⟨U+001B⟩[31mred")


def test_a_run_name_is_text_too(tmp_path):
    folder = write_run(tmp_path / "<b>run<b>")
    assert "&lt;b&gt;run" in words(page_of(folder))


@pytest.mark.parametrize("name", ["metrics.jsonl", "dialogues.jsonl", "evaluation_dialogues.jsonl"])
def test_torn_last_line_is_left_out_and_said(run_dir, name):
    with (run_dir / name).open("a") as stream:
        stream.write('{"iteration": 5, "dia')
    assert f"{name}: the last line is incomplete" in words(page_of(run_dir))


FILES = ("config.yaml", "environment.json", "reward_models.json", "metrics.jsonl", "dialogues.jsonl", "adapters")


@pytest.mark.parametrize("name", [*FILES, "evaluation_dialogues.jsonl", "topology.json"])
def test_any_missing_file_still_gives_a_report(run_dir, name):
    path = run_dir / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = words(page_of(run_dir))
    assert ("has no adapters" if name == "adapters" else name) in text


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "agents": 3}', '{"version": 9}']
)
def test_any_damaged_evaluation_still_gives_a_report(run_dir, content):
    (run_dir / "evaluation.json").write_text(content)
    assert "evaluation.json is " in words(page_of(run_dir))


def test_unfinished_and_foreign_runs_say_so(run_dir):
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace("iterations: 6", "iterations: 60") + "warp: 9\n")
    text = words(page_of(run_dir))
    assert "6 of 60 iterations" in text
    assert "another version" in text


def test_an_empty_run_gives_a_report(tmp_path):
    folder = write_run(tmp_path / "run", iterations=0, evaluated=False)
    assert "No dialogues have been recorded yet" in words(page_of(folder))


def test_two_runs_side_by_side(tmp_path):
    first = write_run(tmp_path / "gossip")
    second = write_run(tmp_path / "alone", iterations=3, evaluated=False)
    text = words(page_of(first, second, out=tmp_path / "both.html"))
    assert 'href="#run1"><bdi>alone' in text
    assert "<bdi>iterations</bdi></th><td><bdi>6</bdi></td><td><bdi>3</bdi></td>" in text


def test_evaluated_runs_are_compared_question_by_question(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_marl.evaluation.statistics.RESAMPLES", 99)
    first, second = write_run(tmp_path / "gossip"), write_run(tmp_path / "alone")
    file = second / "evaluation_dialogues.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["scores"]["held"] = [score + 0.5 * row["dialogue"] for score in row["scores"]["held"]]
        row["aggregate_scores"]["held"] -= 1
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))  # base rows are not needed
    text = words(page_of(first, second, out=tmp_path / "both.html"))
    assert "Trained agents of <bdi>alone</bdi> against those of <bdi>gossip</bdi>" in text
    row = re.search(r"<bdi>judge held</bdi></th>(.*?)</tr>", text).group(1)
    cells = [re.sub("<.*?>", "", cell) for cell in row.split("<td>")[1:]]
    assert [cell[:5] for cell in cells] == ["+0.75"] * 3 + ["-1.00"]  # 0, 0.5, 1 and 1.5 of four questions
    assert re.search(r"team</th><td class=\"word\">own reward \(scaled\)</td><td>0.25 → 1.50", text)
    file.write_text(file.read_text().replace('"refused"', '"refusd"'))
    text = words(page_of(first, second, out=tmp_path / "both.html"))
    assert "evaluation_dialogues.jsonl is incomplete" in text


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_many_dialogues_are_thinned_with_a_note(run_dir, monkeypatch):
    monkeypatch.setattr("rlhf_marl.reporting.page._DIALOGUE_BYTES", 8000)
    page = page_of(run_dir)
    run = data_of(page)["runs"][0]
    assert 0 < len(run["training"]) < 12
    assert 0 < len(run["evaluation"]) <= 4
    assert len(run["episodes"][0]["average"]) == 12
    assert f"it has {len(run['training'])} of 12 training dialogues" in words(page)


@pytest.mark.parametrize("letter", ["a", "漢", "\u200b", "<", '"', "\U0001f642"])
def test_the_budget_of_dialogues_is_of_bytes_in_the_page(tmp_path, monkeypatch, letter):
    """Sizes are those of the encoded text in the page, and evaluated dialogues count too."""
    monkeypatch.setattr("rlhf_marl.reporting.page._DIALOGUE_BYTES", 60_000)
    page = page_of(write_run(tmp_path / "run", texts=[letter * 100] * 3))
    run = data_of(page)["runs"][0]
    assert run["training"]
    assert run["evaluation"]
    sizes = [len(text.encode()) for text in re.findall(r'"(?:training|evaluation)":(\[.*?\]\}\])', page)]
    assert len(sizes) == 2
    assert sum(sizes) <= 60_000


def test_a_dialogue_larger_than_the_page_is_left_out(run_dir, monkeypatch):
    monkeypatch.setattr("rlhf_marl.reporting.page._DIALOGUE_BYTES", 100)
    page = page_of(run_dir)
    assert data_of(page)["runs"][0]["training"] == []
    assert "too long for this file" in words(page)


def test_a_dialogue_without_a_reward_is_a_gap_and_no_zero():
    assert moving_average([1.0, math.nan, 4.0], 2) == [1.0, 1.0, 4.0]
    assert moving_average([math.nan, 3.0], 5) == [None, 3.0]


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("metrics.jsonl", '"iteration": 0', '"iteration": 1e999'),
        ("metrics.jsonl", '"td_error": 1.0', '"td_error": ' + "9" * 400),
        ("dialogues.jsonl", '"iteration": 0', '"iteration": 1e999'),
        ("dialogues.jsonl", '"reward_scaled": [0.0', '"reward_scaled": [' + "9" * 400),
        ("dialogues.jsonl", '"reward_scaled": [0.0', '"reward_scaled": [1e308'),
        ("dialogues.jsonl", '"prompt": "prompt 0.0.0"', f'"prompt": {DEEP}'),
        ("evaluation_dialogues.jsonl", '"scores": {"vowels": [0.0', '"scores": {"vowels": [' + "9" * 400),
        ("evaluation.json", '"difference": 1.25', '"difference": 1e999'),
        ("evaluation.json", '"agreement": {', f'"agreement": {DEEP}, "x": {{'),
        ("environment.json", "{}", f'{{"a": {DEEP}}}'),
        ("environment.json", "{", f'{{"a": {"[" * 60 + "]" * 60}, '),
        ("topology.json", "0.5", "9" * 400),
        ("reward_models.json", "[", f"[{DEEP}, "),
        ("config.yaml", "iterations: 6", "iterations: " + "9" * 400),
    ],
)
def test_odd_numbers_and_nesting_still_give_a_report(run_dir, name, old, new):
    file = run_dir / name
    if name == "environment.json" and old == "{}":
        file.write_text("{}")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert "<h2" in page_of(run_dir)


def test_an_evaluation_of_other_agents_gives_a_note(run_dir):
    assert "other adapters or checkpoints" not in words(page_of(run_dir))
    (run_dir / "adapters" / "agent_0" / "adapter_model.safetensors").write_bytes(b"trained on")
    assert "evaluation.json belongs to other adapters or checkpoints than the run has now" in words(page_of(run_dir))


def test_command_line(run, tmp_path):
    folder = write_run(tmp_path / "run")
    code, printed, _ = run("report", "run")
    assert (code, printed.strip()) == (0, "run/report.html")
    assert (folder / "report.html").is_file()
    code, _, errors = run("report", "nowhere")
    assert code == 2
    assert errors.startswith("error: report: 'nowhere' is not a run directory")
    assert run("report", "run", "run")[0] == 2
    code, _, errors = run("report", "run", "--out", "no/such/folder.html")
    assert code == 2
    assert "cannot be written" in errors


def test_reading_a_run_needs_no_torch(run_dir):
    code = (
        "import sys; from pathlib import Path; from rlhf_marl.reporting.page import write_report\n"
        f"write_report([Path({str(run_dir)!r})]); print('torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "False"


def test_training_writes_a_report_with_its_weights(run, tiny_content, tmp_path):
    import yaml

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_content))
    code, _, errors = run("train", "tiny.yaml", "--run-dir", "out")
    assert code == 0, errors
    assert "out/report.html" in errors
    assert json.loads((tmp_path / "out" / "topology.json").read_text())["matrix"] == [[0.5, 0.5], [0.5, 0.5]]
    assert read_run(tmp_path / "out").notes == []


def live_pages(monkeypatch):
    """Every page written by training, as (what its notes say, seconds to the next reload)."""
    pages = []

    def write(file, text):
        pages.append((re.findall(r"<li><bdi>(.*?)</bdi></li>", text), data_of(text)["reload"]))
        file.write_text(text, "utf-8")

    monkeypatch.setattr("rlhf_marl.reporting.page.write_text", write)
    return pages


def test_training_keeps_a_page_that_reloads_itself_and_ends_with_one_that_does_not(
    run, quick_content, tmp_path, monkeypatch
):
    pages = live_pages(monkeypatch)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick_content | {"iterations": 5}))
    code, _, errors = run("train", "quick.yaml", "--run-dir", "out", "--report-every", "2")
    assert code == 0, errors
    under_way = [[f"The run is under way: {done} of 5 iterations are finished"] for done in (0, 2, 4)]
    assert pages == [*((notes, 15) for notes in under_way), ([], None)]
    assert "report_every" not in (tmp_path / "out" / "config.yaml").read_text()
    code, _, errors = run("train", "out/config.yaml", "--run-dir", "out", "--resume", "--iterations", "6")
    assert code == 0, errors
    assert pages[4:] == [([], None)]


def test_a_live_page_stops_reloading_when_the_run_is_stopped(run, quick_content, tmp_path, monkeypatch):
    pages = live_pages(monkeypatch)
    (tmp_path / "rewards.py").write_text("def fails(prompts, responses):\n    raise ValueError('no more')\n")
    card = write_card(tmp_path, "fails", "rewards.py:fails")
    (tmp_path / "quick.yaml").write_text(
        yaml.safe_dump(quick_content | {"agents": [{"reward_model": str(card)} for _ in range(2)]})
    )
    code, _, errors = run("train", "quick.yaml", "--run-dir", "out", "--report-every", "1")
    assert (code, "no more" in errors) == (3, True), errors
    assert [reload for _, reload in pages] == [15, None]
    assert "The run is not finished: 0 of 2 iterations are recorded; continue with --resume" in pages[1][0]


def test_a_live_page_that_cannot_be_written_is_a_warning_and_the_run_goes_on(run, quick_content, tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_marl.reporting.page.write_text", full)
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(quick_content))
    code, _, errors = run("train", "quick.yaml", "--run-dir", "out", "--report-every", "1")
    assert code == 0, errors
    assert (tmp_path / "out" / "train.log").read_text().count("report.html was not written") == 3


@pytest.mark.parametrize("every", ["0", "-1", "x"])
def test_a_wrong_interval_is_one_line(run, every):
    code, _, errors = run("train", "configs/quickstart.yaml", "--report-every", every)
    assert (code, "--report-every" in errors) == (2, True)
    with pytest.raises(UsageError, match="report_every: 0 given"):
        train(ROOT / "configs" / "quickstart.yaml", report_every=0)


def test_a_report_that_fails_is_a_warning(run_dir, caplog):
    (run_dir / "report.html").mkdir()
    refresh_report(run_dir)
    assert "report.html was not written" in caplog.text


def test_the_same_folder_twice_is_refused(run_dir):
    with pytest.raises(UsageError, match="named twice"):
        write_report([run_dir, run_dir / ".." / "run"])
