import pytest

from rlhf_marl.config import Config, check_config, dump_config, load_config
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


def test_missing_config_lists_the_shipped_ones():
    with pytest.raises(UsageError, match=r"'configs/nope.yaml' does not exist; shipped: configs/keys.yaml, configs/pa"):
        load_config("configs/nope.yaml")


LEAST = {"iterations": 1, "model": {"name": "m"}, "agents": [{"reward_model": "a.yaml"}]}


def test_plain_data_becomes_a_config_with_defaults():
    config = check_config(LEAST, "here")
    assert (config.model.name, config.agents[0].reward_model) == ("m", "a.yaml")
    with pytest.raises(UsageError, match=r"^here: turms: unknown key \(value 3\); did you mean 'turns'\?$"):
        check_config(LEAST | {"turms": 3}, "here")


def test_a_dumped_config_says_its_defaults_too(tmp_path):
    config = check_config(LEAST | {"discount": 0.25}, "here")
    dump_config(config, tmp_path / "c.yaml")
    content = load_yaml(tmp_path / "c.yaml")
    assert content["discount"] == 0.25
    assert content["turns"] == config.turns
    assert list(content) == list(Config.model_fields)
