import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from rlhf_marl.config import check_config, load_config
from rlhf_marl.config.validation import Address, Retries, Seconds, explain
from rlhf_marl.errors import UsageError

QUICKSTART = "configs/quickstart.yaml"


def test_a_pasted_key_is_not_repeated():
    with pytest.raises(UsageError, match=r"controller\.api_key: unknown key") as caught:
        load_config(QUICKSTART, ["--controller.api_key", "sk-secret123"])
    assert "sk-secret123" not in str(caught.value)


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
        (["--dialogues_per_question", "3"], f"{QUICKSTART}: dialogues_per_question: 3 does not divide dialogues (4)"),
        (["--dialogues_per_question", "2"], f"{QUICKSTART}: dialogues_per_question: all dialogues ask the fixed"),
        (["--actor.signal", "q_value"], f"{QUICKSTART}: actor.credit: local needs a signal with an immediate reward"),
        (
            ["--reward.of", "team"],
            f"{QUICKSTART}: actor.credit: local leaves out the other agents' rewards, which",
        ),
        (["--topology.masked", "true", "--topology.gossip_rounds", "0"], f"{QUICKSTART}: topology.masked: with gossip"),
        (
            ["--topology.masked", "true", "--cooperation", "independent"],
            f"{QUICKSTART}: topology.masked: with cooperation independent nothing is gossiped; use false",
        ),
        (
            ["--topology.masked", "true", "--agents", "[{reward_model: a}, {reward_model: b}]"],
            f"{QUICKSTART}: topology.masked: hides nothing with 2 agents, since a neighbour knows its masks; use",
        ),
        (
            ["--cooperation", "minimum"],
            f"{QUICKSTART}: actor.credit: local needs a reward of the agent's own; with",
        ),
        (["--actor.signal", "return"], f"{QUICKSTART}: actor.turns_per_update: signal return needs whole dialogues: 3"),
        (
            ["--actor.signal", "return", "--actor.turns_per_update", "3", "--terminal", "restart"],
            f"{QUICKSTART}: terminal: restart needs a critic; signal return has none; use zero",
        ),
        (
            ["--actor.kl_target", "0.5", "--actor.kl_coefficient", "0"],
            f"{QUICKSTART}: actor.kl_coefficient: kl_target multiplies it, so it must start above 0",
        ),
        (["--actor.kl_target", "0"], f"{QUICKSTART}: actor.kl_target: 0 given; input should be greater than 0"),
        (
            ["--actor.entropy_band", "[2, 1.5]"],
            f"{QUICKSTART}: actor.entropy_band: [2, 1.5] is empty; give [low, high] with low < high",
        ),
        (["--actor.entropy_band", "[2]"], f"{QUICKSTART}: actor.entropy_band: [2] given; list should have at least 2"),
        (["--best_metric", "held_out"], f"{QUICKSTART}: best_metric: held_out needs a validation section"),
        (["--validation.every", "2"], f"{QUICKSTART}: validation.judges: missing; it is required"),
        (["--validation.judges", "[]"], f"{QUICKSTART}: validation.judges: [] given; list should have at least 1 item"),
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


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(UsageError) as caught:
        check_config({"iterations": 0, "agents": [{}], "model": {"name": "m"}}, "c.yaml")
    assert str(caught.value).splitlines() == [
        "c.yaml: iterations: 0 given; input should be greater than 0",
        "c.yaml: agents.0.reward_model: missing; it is required",
    ]


class Pair(BaseModel, extra="forbid"):
    size: int
    token: int = 0


def lines(content, allowed=()):
    with pytest.raises(ValidationError) as caught:
        Pair.model_validate(content)
    return explain(caught.value, "here", content, allowed).splitlines()


def test_lines_by_hand():
    assert lines({}) == ["here: size: missing; it is required"]
    assert lines({"size": 1, "sze": 2}, ["size"]) == ["here: sze: unknown key (value 2); did you mean 'size'?"]
    assert lines({"size": 1, "qqq": 2}, ["size", "x"]) == ["here: qqq: unknown key (value 2); choose size, x"]
    many = [f"key{number}" for number in range(50)]
    assert lines({"size": 1, "qqq": 2}, many) == ["here: qqq: unknown key (value 2); `rlhf-marl schema` lists the keys"]
    (line,) = lines({"size": "\x1b[31m"})
    assert line.startswith("here: size: ")
    assert "\x1b" not in line


def test_possible_secrets_are_not_repeated():
    (line,) = lines({"size": 1, "token": "sk-secret"})
    assert line.startswith("here: token: a value given; ")


@pytest.mark.parametrize("address", ["http://a", "https://a.b:80/c", "http://127.0.0.1:9/score"])
def test_addresses(address):
    assert TypeAdapter(Address).validate_python(address) == address


@pytest.mark.parametrize(
    "address", ["a", "ftp://a", "http://", "http://a b", "http://a:99999", "http://me:pw@a", "http://a\n"]
)
def test_no_addresses(address):
    with pytest.raises(ValidationError):
        TypeAdapter(Address).validate_python(address)


@pytest.mark.parametrize(("kind", "value"), [(Seconds, 0), (Seconds, 86_401), (Retries, -1), (Retries, 1001)])
def test_numbers_out_of_bounds(kind, value):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)
