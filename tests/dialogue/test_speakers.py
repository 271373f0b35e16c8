"""Agents that differ: names, roles and settings of generation, from the config to the run's files."""

import pytest
import torch

import rlhf_marl
from rlhf_marl.config import check_config
from rlhf_marl.dialogue.speakers import Decoding, Speaker, decodings, speakers_of
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.chat import Message
from rlhf_marl.reporting.run_record import read_run
from rlhf_marl.training.build import build

USER = Message(role="user", content="q")
OWN = Message(role="system", content="Be brief.")


def of(quick_content, *changes, **more):
    agents = [quick_content["agents"][0] | change for change in changes]
    return check_config(quick_content | {"agents": agents} | more, "c")


def test_a_role_is_the_first_message():
    speaker = Speaker("a", "You argue.")
    assert speaker.reads([USER]) == [Message(role="system", content="You argue."), USER]
    assert speaker.reads([OWN, USER]) == [Message(role="system", content="You argue.\n\nBe brief."), USER]
    assert Speaker("a").reads([OWN, USER]) == [OWN, USER]


def test_roles_are_templates_over_the_names(quick_content):
    config = of(quick_content, {"name": "Ada", "system": " {{ name }} against {{ names[1] }} "}, {})
    assert speakers_of(config, "c") == [Speaker("Ada", "Ada against agent 1"), Speaker("agent 1")]


def test_a_role_from_a_file_is_part_of_the_runs_config(quick_content, tmp_path):
    (tmp_path / "role.txt").write_text("You argue.\n")
    config = of(quick_content, {"system": f"{tmp_path}/role.txt"}, {})
    (tmp_path / "role.txt").unlink()
    run = rlhf_marl.train(config, run_dir=tmp_path / "run")
    assert run.config.agents[0].system == "You argue."
    resumed = rlhf_marl.train(run.config.model_copy(update={"iterations": 3}), run_dir=run.path, resume=True)
    assert len(resumed.metrics) == 6


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        ([{"system": "no/role.txt"}], r"agents.0.system: 'no/role.txt' does not exist"),
        ([{"system": ""}], r"agents.0.system: '' given; string should have at least 1 character"),
        ([{"name": "a/b"}], r"agents.0.name: 'a/b' given; string should match pattern"),
        ([{"name": "a"}, {"name": "a"}], r"agents: two are named 'a'; names must differ"),
        ([{}, {"name": "agent 0"}], r"agents: two are named 'agent 0'; names must differ"),
        ([{"generation": {"max_prompt_tokens": 9}}], r"agents.0.generation.max_prompt_tokens: unknown key"),
        ([{"generation": {"temperature": 0.0}}], r"agents.0.generation.temperature: 0.0 given"),
    ],
)
def test_what_is_no_agent_is_refused(quick_content, agents, message):
    with pytest.raises(UsageError, match=message):
        of(quick_content, *agents)


def test_a_role_that_cannot_be_rendered_is_refused(quick_content):
    config = of(quick_content, {"system": "{{ nobody }}"})
    with pytest.raises(UsageError, match=r"c: agents.0.system: template error: 'nobody' is undefined"):
        build(config, "c", torch.device("cpu"))


def test_a_role_counts_to_the_prompts_length(quick_content):
    config = of(quick_content, {}, {"system": "long " * 20})
    with pytest.raises(UsageError, match=r"prompt 1 .* is 131 tokens long .* allows 64"):
        build(config, "c", torch.device("cpu"))


def test_neighbours_with_the_same_settings_sample_together(quick_content):
    cold, short = {"generation": {"temperature": 0.5}}, {"generation": {"max_new_tokens": 2}}
    assert decodings(of(quick_content, {}, {})) == [Decoding(slice(None), 3, 1.0)]
    assert decodings(of(quick_content, {}, cold, cold, short, {}), [1, 3]) == [
        Decoding(slice(0, 1), 3, 0.5),
        Decoding(slice(1, 2), 2, 1.0),
    ]
    assert decodings(of(quick_content, {}, cold, cold, short, {}), [2]) == [Decoding(slice(None), 3, 0.5)]
    assert decodings(of(quick_content, {}, cold, cold, short, {})) == [
        Decoding(slice(0, 1), 3, 1.0),
        Decoding(slice(1, 3), 3, 0.5),
        Decoding(slice(3, 4), 2, 1.0),
        Decoding(slice(4, 5), 3, 1.0),
    ]


@pytest.mark.parametrize("signal", ["td_v", "td_q"])
def test_agents_with_their_own_limits_and_temperatures_train(quick_content, tmp_path, signal):
    """An agent's own settings change its answers alone; the other's first answers stay."""
    more = {"actor": {"signal": signal}, "turns": 2}
    plain = rlhf_marl.train(of(quick_content, {}, {}, **more), run_dir=tmp_path / "a")
    own = {"generation": {"max_new_tokens": 2, "temperature": 0.01}}
    run = rlhf_marl.train(of(quick_content, {}, own, **more), run_dir=tmp_path / "b")
    answers = [run.dialogues.loc[0, "responses"] for run in (plain, run)]
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] != answers[1][1]
    lengths = [[len(answer["tokens"]) for answer in row] for row in run.dialogues["responses"]]
    assert max(first for first, _ in lengths) == 3
    assert max(second for _, second in lengths) == 2
    entropy = run.metrics.groupby("agent")["entropy"].mean()
    assert entropy[1] < 0.1 < entropy[0]  # at a temperature near 0


def test_names_are_in_metrics_terminal_and_report(quick_content, tmp_path, capsys):
    config = of(quick_content, {"name": "critic"}, {})
    run = rlhf_marl.train(config, run_dir=tmp_path / "run")
    assert run.metrics["name"].tolist() == ["critic", "agent 1"] * 2
    shown = capsys.readouterr().err
    assert "reward critic " in shown
    assert "vowels " in shown
    assert read_run(run.path).agents == ["critic: vowels", "vowels"]
    assert [agent.name for agent in run.agents()] == ["critic", "agent 1"]


def test_agents_keep_their_role_after_training(quick_content, tmp_path):
    """In their own chat, in an evaluation and in an exported card."""
    role = "Answer with one word. ```"
    config = of(quick_content, {"name": "critic", "system": role}, {}, generation={"max_prompt_tokens": 128})
    run = rlhf_marl.train(config, run_dir=tmp_path / "run")
    critic, other = run.agents()
    asked = [Message(role="system", content=role), USER]
    assert critic.chat("q", 8) == critic.chat([USER], 8)
    assert other.chat(asked, 8) != other.chat([USER], 8)
    other_in_its_place = rlhf_marl.api.Agent(0, critic._chat, Speaker("critic"))
    assert other_in_its_place.chat(asked, 8) == critic.chat("q", 8) != other_in_its_place.chat("q", 8)
    rlhf_marl.export(run.path, agent=0, to=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "# Critic (vowels)" in card
    assert f'chat = [{{"role": "system", "content": {role!r}}}, {{"role": "user"' in card
    with pytest.raises(UsageError, match=r"the longest question has .* tokens; with an answer it exceeds"):
        rlhf_marl.evaluate(_with_long_role(run.path), judges=[], limit=1)


def _with_long_role(path):
    """The run with a role that fills the model's context."""
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("Answer with one word.", "Answer with one word." * 30))
    return path
