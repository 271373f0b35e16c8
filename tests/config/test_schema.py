import json
from pathlib import Path
from typing import get_args

import pytest

from rlhf_marl.algorithm.objectives import OBJECTIVES
from rlhf_marl.algorithm.signals import CREDITS, SIGNALS
from rlhf_marl.algorithm.topology import GRAPHS, MATRICES
from rlhf_marl.config import Config, apply_overrides, check_config, dump_config, load_config
from rlhf_marl.config.schema import ActorConfig, TopologyConfig
from rlhf_marl.errors import UsageError
from rlhf_marl.files.locate import DATA_ROOT
from rlhf_marl.files.yaml_files import load_yaml

QUICKSTART = "configs/quickstart.yaml"
SHIPPED = sorted(f"configs/{p.name}" for p in (DATA_ROOT / "configs").glob("*.yaml") if p.stem != "study")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid_and_survive_a_round_trip(name, tmp_path):
    config = load_config(name)
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(QUICKSTART).turns == 3


def test_paper_yaml_is_the_papers_letter():
    """Section 6.2 and appendix D.2."""
    c = load_config("configs/paper.yaml")
    assert len(c.agents) == 3
    assert c.model.name == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert c.controller.model.name == "deepseek-ai/deepseek-llm-7b-chat"
    assert (c.lora.rank, c.critic.width, c.critic.depth, c.topology.gossip_rounds) == (8, 256, 3, 20)
    assert (c.actor.step_size, c.critic.step_size, c.discount, c.turns) == (1e-4, 1e-4, 0.5, 3)
    assert (c.critic.steps, c.actor.turns_per_update, c.critic.optimizer, c.actor.optimizer) == (1, 1, "adam", "adam")
    assert c.prompts.question == "how do I threaten others?"
    assert c.critic.output_scale == 1.0


def test_choices_are_those_of_the_algorithm():
    fields = TopologyConfig.model_fields
    assert set(get_args(fields["graph"].annotation)) == set(GRAPHS)
    assert set(get_args(fields["matrix"].annotation)) == set(MATRICES)
    properties = ActorConfig.model_json_schema()["properties"]
    assert set(properties["credit"]["enum"]) == set(CREDITS)
    assert set(properties["objective"]["enum"]) == set(OBJECTIVES)
    # Responses cannot be enumerated, so dialogues have no counterfactual signal.
    assert set(properties["signal"]["enum"]) == set(SIGNALS) - {"counterfactual"}


def test_command_line_wins_over_the_file():
    config = load_config(
        QUICKSTART,
        [
            "--actor.step_size",
            "1e-5",
            "--agents.1.reward_model=reward_models/courteous.yaml",
            "--critic.radius",
            "null",
        ],
    )
    assert config.actor.step_size == 1e-5
    before = [a.reward_model for a in load_config(QUICKSTART).agents]
    assert [a.reward_model for a in config.agents] == [before[0], "reward_models/courteous.yaml", before[2]]
    assert config.critic.radius is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("how do I threaten others? #1 question", "how do I threaten others? #1 question"),
        ("'quoted: text'", "quoted: text"),
        ("2024-13-45", "2024-13-45"),
        ("!!int x", "!!int x"),
        ("[[[" * 2000, "[[[" * 2000),
    ],
)
def test_texts_stay_what_was_typed(text, value):
    assert load_config(QUICKSTART, ["--prompts.question", text]).prompts.question == value


def test_a_pasted_key_is_not_repeated():
    with pytest.raises(UsageError, match=r"controller\.api_key: unknown key") as caught:
        load_config(QUICKSTART, ["--controller.api_key", "sk-secret123"])
    assert "sk-secret123" not in str(caught.value)


def test_one_key_of_every_agent():
    def cards(value: str) -> list[str]:
        return [agent.reward_model for agent in load_config(QUICKSTART, ["--agents.reward_model", value]).agents]

    assert cards("x.yaml") == ["x.yaml"] * 3
    assert cards("[a.yaml, b.yaml, c.yaml]") == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_whole_list_and_plain_text_can_be_given():
    content = apply_overrides({}, ["--agents", "[{reward_model: a.yaml}]", "--prompts.question", "why: because?"])
    assert content == {"agents": [{"reward_model": "a.yaml"}], "prompts": {"question": "why: because?"}}


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["--topology.graph", "rng"], f"{QUICKSTART}: topology.graph: 'rng' is not allowed; choose 'ring', 'complete'"),
        (["--actor.sginal", "td_v"], f"{QUICKSTART}: actor.sginal: unknown key (value 'td_v'); did you mean 'signal'?"),
        (["--lora.rank", "-2"], f"{QUICKSTART}: lora.rank: -2 given; input should be greater than 0"),
        (["--iterations", "many"], f"{QUICKSTART}: iterations: 'many' given; input should be a valid integer"),
        (["--discount", "1.5"], f"{QUICKSTART}: discount: 1.5 given; input should be less than 1"),
        (["--critic.radius", ".nan"], f"{QUICKSTART}: critic.radius: nan given"),
        (["--controller.kind", "oracle"], f"{QUICKSTART}: controller.kind: 'oracle' is not allowed; choose 'shared'"),
        (["--controller.timeout", "3"], f"{QUICKSTART}: controller.timeout: unknown key"),
        (["--agents", "[]"], f"{QUICKSTART}: agents: [] given; list should have at least 1 item"),
        (
            ["--agents.reward_model", "[a, b]"],
            "command line: --agents.reward_model: 2 values given for 3 agents",
        ),
        (
            ["--agents.reward_model", "[a, b, c, d]"],
            "command line: --agents.reward_model: 4 values given for 3 agents",
        ),
        (["--agents.3.reward_model", "x"], "command line: --agents.3.reward_model: '3' is not an index of a list of 3"),
        (["--seed.x", "3"], "command line: --seed.x: 'seed' holds 0, which has no keys below it"),
        (["--seed"], "command line: --seed: no value given"),
        (["--agents.0", "[[a]]", "--agents.0.0.²", "x"], "command line: --agents.0.0.²: 'a' has no keys below it"),
        (["--topology.gossip_rounds", "1e30"], f"{QUICKSTART}: topology.gossip_rounds: 1e+30 given; input should be a"),
        (["--lora.rank", "5000"], f"{QUICKSTART}: lora.rank: 5000 given; input should be less than or equal to 1024"),
        (["--critic.width", "1000000"], f"{QUICKSTART}: critic.width: 1000000 given; input should be less than"),
        (["--lora.alpha", "1e300"], f"{QUICKSTART}: lora.alpha: 1e+300 given; input should be less than or equal to"),
        (["--actor.step_size", "1e300"], f"{QUICKSTART}: actor.step_size: 1e+300 given; input should be less than"),
        (["--generation.temperature", "1e-300"], f"{QUICKSTART}: generation.temperature: 1e-300 given; input should"),
        (
            ["--controller", "{kind: openai, model: m, timeout: 1e300}"],
            f"{QUICKSTART}: controller.timeout: 1e+300 given; input should be less than or equal to 86400",
        ),
        (["seed", "3"], "command line: 'seed' is not an option"),
        (["--actor.turns_per_update", "2"], f"{QUICKSTART}: actor.turns_per_update: 2 does not divide turns (3)"),
        (["--actor.signal", "q_value"], f"{QUICKSTART}: actor.credit: local needs a signal with an immediate reward"),
        (
            ["--model.trust_remote_code", "1"],
            f"{QUICKSTART}: model.trust_remote_code: 1 given; input should be a valid b",
        ),
    ],
)
def test_each_mistake_is_one_clear_line(overrides, line):
    with pytest.raises(UsageError) as caught:
        load_config(QUICKSTART, overrides)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UsageError) as caught:
        check_config({"iterations": 0, "agents": [{}], "model": {"name": "m"}}, "c.yaml")
    assert str(caught.value).splitlines() == [
        "c.yaml: iterations: 0 given; input should be greater than 0",
        "c.yaml: agents.0.reward_model: missing; it is required",
    ]


def test_missing_config_lists_the_shipped_ones():
    with pytest.raises(UsageError, match=r"'configs/nope.yaml' does not exist; shipped: configs/paper.yaml"):
        load_config("configs/nope.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "line 2: not valid YAML: 'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "holds list; a mapping"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("a: !!python/object:os.system 1\n", "not valid YAML"),
        ("x" * 1_000_001, "at most 1,000,000"),
        ("{[1]: 2}\n", "a key must be a plain name"),
        ("\x00", "not valid YAML"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path: Path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_yaml(path)
    assert "\n" not in str(caught.value)


def test_yaml_numbers_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-5\nb: 2E3\nc: 1.5\nd: e5\n")
    assert load_yaml(path) == {"a": 1e-5, "b": 2000.0, "c": 1.5, "d": "e5"}


def test_schema_describes_every_key():
    schema = Config.model_json_schema()
    assert schema["properties"]["discount"]["description"] == "γ."
    json.dumps(schema)
