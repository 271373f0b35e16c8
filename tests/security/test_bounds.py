"""Large files are bounded, path traversal is refused, templates are sandboxed."""

import tempfile

import pytest
import yaml

import rlhf_marl
from rlhf_marl.config import load_config
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation.questions import load_questions
from rlhf_marl.policy.instructions import render
from rlhf_marl.rewards import load_card
from rlhf_marl.rewards.preferences import load_pairs

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{'*' + chr(97 + i)},*a]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases"),
        ("a" * 1_100_000 + ": 1\n", "at most 1,000,000 are allowed"),
        ("{" * 20_000, "nested more than 50 deep"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "nested more than 50 deep"),
        ("".join(" " * i + "- \n" for i in range(900)), "nested more than 50 deep"),
        ("? [a, b]\n: 1\n", "a key must be a plain name"),
        ("!!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("model: !!python/name:os.system\n", "not valid YAML"),
    ],
    ids=["bomb", "megabytes", "deep", "deeper", "deep-block", "odd-key", "object", "name"],
)
@pytest.mark.parametrize("load", [load_config, lambda path: load_card(path, "card")], ids=["config", "card"])
def test_yaml_is_bounded_and_builds_nothing(tmp_path, load, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path / "c.yaml"))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/b", "a\\b", "", ".hidden", "a\nb", "x" * 65, "a\x1b[2J"])
def test_names_of_cards_are_no_paths(tmp_path, name):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"kind": "callable", "name": name, "function": "m:f"}))
    with pytest.raises(UsageError, match="name"):
        load_card(str(tmp_path / "c.yaml"), "card")


@pytest.mark.parametrize("load", [load_config, lambda path: load_card(path, "card")], ids=["config", "card"])
@pytest.mark.parametrize("path", ["~nouser/x.yaml", "x" * 5000, "a\0b"])
def test_paths_that_no_system_knows_are_one_line(load, path):
    with pytest.raises(UsageError, match="does not exist"):
        load(path)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set x = responses.append('y') %}{{ responses }}",
        "{{ missing }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(99999999999) %}x{% endfor %}",
    ],
)
def test_templates_run_in_a_sandbox(template):
    with pytest.raises(UsageError, match="template error"):
        render(template, "controller.templates", responses=["a"])


def test_what_a_model_wrote_is_no_template():
    hostile = "{{ 7 * 7 }}{% raw %}"
    assert render("{{ prompt }}", "t", prompt=hostile) == hostile


@pytest.mark.parametrize(
    "load", [load_questions, lambda path: load_pairs(str(path), "--pairs")], ids=["questions", "pairs"]
)
@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"prompt": ' + "9" * 5_000 + "}", "\x00", "{", "nul", '"' + "x" * 10_000]
)
def test_hostile_lines_are_one_error_line(tmp_path, load, line):
    (tmp_path / "q.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "q.jsonl")
    assert "line 1" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_nothing_is_written_to_shared_temporary_folders(quick_content, tmp_path, monkeypatch):
    """Training and export need no /tmp: temporary files are written next to their target."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    run = rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    rlhf_marl.export(run.path, agent=0, to=tmp_path / "exported")
    assert not (tmp_path / "nowhere").exists()
