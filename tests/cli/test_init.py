"""`rlhf-marl init`: a config that loads, from options or questions, and refusals."""

import pytest

from rlhf_marl.config import load_config


def test_defaults_and_options_give_a_valid_commented_config(run, tmp_path):
    code, printed, errors = run("init", "a.yaml")
    assert (code, printed) == (0, "a.yaml: next: rlhf-marl train a.yaml\n"), errors
    text = (tmp_path / "a.yaml").read_text()
    assert sum("#" in line for line in text.splitlines()) > 15
    config = load_config(str(tmp_path / "a.yaml"))
    assert [agent.reward_model for agent in config.agents] == [
        "reward_models/trained_harmless.yaml",
        "reward_models/trained_helpful.yaml",
    ]
    options = [
        "--reward",
        "courteous",
        "--reward",
        "reward_models/harmless.yaml",
        "--graph",
        "star",
        "--iterations",
        "3",
    ]
    assert run("init", "b.yaml", "--model", "org/m", "--question", 'why: "#1"?', *options)[0] == 0
    config = load_config(str(tmp_path / "b.yaml"))
    assert (config.model.name, config.topology.graph, config.iterations) == ("org/m", "star", 3)
    assert config.prompts.question == 'why: "#1"?'
    assert config.agents[0].reward_model == "reward_models/courteous.yaml"


def test_questions_on_a_terminal(run, tmp_path, monkeypatch):
    answers = iter(["org/m", "harmless courteous", "complete", "5"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.prompt", lambda *_, **__: next(answers))
    assert run("init", "--question", "why?")[0] == 0
    config = load_config(str(tmp_path / "config.yaml"))
    assert (config.model.name, config.topology.graph, config.iterations) == ("org/m", "complete", 5)
    assert len(config.agents) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--reward", "nope"], "error: init: --reward: 'nope' does not exist"),
        (["--graph", "rng"], "error: init: x.yaml: topology.graph: 'rng' is not allowed; choose 'ring'"),
        (["--question", ""], "error: init: x.yaml: prompts.question: '' given"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(run, tmp_path, options, line):
    code, _, errors = run("init", "x.yaml", *options)
    assert code == 2
    assert errors.startswith(line)
    assert errors.count("\n") == 1
    assert not (tmp_path / "x.yaml").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "x.yaml").write_text("mine")
    assert run("init", "x.yaml")[:2] == (2, "")
    assert (tmp_path / "x.yaml").read_text() == "mine"
