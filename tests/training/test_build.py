"""From a config to an experiment: hand-computed graphs, early one-line errors, and seeding."""

import json
import math
import shutil

import pytest
import torch

from rlhf_marl.algorithm.masks import Masks
from rlhf_marl.algorithm.mixing import MatrixMixer
from rlhf_marl.config import check_config
from rlhf_marl.errors import UsageError
from rlhf_marl.perf.memory import fits_into_memory
from rlhf_marl.perf.stopwatch import Stopwatch
from rlhf_marl.training.build import build, build_agents, build_learner, build_topology, prepare_masks
from rlhf_marl.training.loop import first_prompts, run_iteration
from tests.conftest import tiny_tokenizer

CPU = torch.device("cpu")


def config_of(content, **changes):
    return check_config(content | changes, "c")


def three(content):
    return [*content["agents"], content["agents"][0]]


def test_a_ring_of_three_by_hand(quick_content):
    """Everyone has two neighbours, so every weight is 1 / (1 + 2)."""
    graph, matrix = build_topology(config_of(quick_content, agents=three(quick_content)), "c")
    assert graph.tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    torch.testing.assert_close(matrix, torch.full((3, 3), 1 / 3, dtype=torch.float64))


def test_rounds_that_change_nothing_are_a_warning(quick_content, caplog):
    build(config_of(quick_content, agents=three(quick_content), topology={"graph": "ring"}), "c", CPU)
    assert [record.getMessage()[:67] for record in caplog.records] == [
        "c: topology.gossip_rounds: 1 of the 20 rounds are enough: they give"
    ]
    caplog.clear()
    build(config_of(quick_content, agents=three(quick_content), topology={"graph": "star"}), "c", CPU)
    assert not caplog.records


def masked(content, graph="ring", n_agents=5, **topology):
    topology |= {"graph": graph, "masked": True}
    return config_of(content, agents=[content["agents"][0]] * n_agents, topology=topology)


def test_masks_that_the_rounds_do_not_remove_are_refused(quick_content):
    """A ring's masks have the spectrum 2 - 2 cos 72°k, of which a round leaves (1 + 2 cos 72°k) / 3."""
    spectrum = [(2 - 2 * cos, (1 + 2 * cos) / 3) for cos in (math.cos(2 * math.pi * k / 5) for k in range(5))]
    assert 10 * math.sqrt(sum(size * left**10 for size, left in spectrum) / 5) == pytest.approx(0.34, abs=0.005)
    build_topology(masked(quick_content, gossip_rounds=9), "c")
    with pytest.raises(UsageError) as refused:
        build_topology(masked(quick_content, gossip_rounds=5), "c")
    assert str(refused.value) == (
        "c: topology: gossip_rounds: 5 rounds leave 0.34 of masks of size 10, in standard deviations of a reward; at "
        "most 0.044 is allowed with critic.optimizer adam and 512 weights: 10 rounds are enough; or use a smaller "
        "mask_size, which hides less"
    )
    sgd = quick_content | {"critic": quick_content["critic"] | {"optimizer": "sgd"}}
    with pytest.raises(UsageError, match=r"at most 0\.1 is allowed: 9 rounds are enough; or"):
        build_topology(masked(sgd, gossip_rounds=5), "c")


def test_masks_leave_at_most_an_updates_worth_of_adams_second_moments(quick_content):
    """A ring of six leaves 10 √(2/6) (2/3)^t after t rounds, in a second moment √(3 * 256²) times its growth."""
    left = [10 * (2 / 6) ** 0.5 * (2 / 3) ** t * 3**0.5 * 256 for t in (19, 20)]
    assert left == pytest.approx([1.155, 0.77], rel=0.01)
    content = quick_content | {"critic": {"width": 256, "depth": 3}}
    build_topology(masked(content, n_agents=6, gossip_rounds=20), "c")
    words = r"at most 0\.0023 is allowed with critic.optimizer adam and 196,608 weights: 22 rounds"
    with pytest.raises(UsageError, match=words):
        build_topology(masked(content, n_agents=6, gossip_rounds=19), "c")
    for without in ({"critic": content["critic"] | {"optimizer": "sgd"}}, {"actor": {"signal": "return"}}):
        build_topology(masked(content | without, n_agents=6, gossip_rounds=19), "c")


def test_agents_that_masks_do_not_hide_are_named(quick_content, caplog):
    build(masked(quick_content, "star", gossip_rounds=40), "c", CPU)
    assert [record.getMessage() for record in caplog.records] == [
        "c: topology.masked: nothing hides the values of agents 1, 2, 3, 4 from a single neighbour or its worker, "
        "which knows all their masks"
    ]


@pytest.mark.parametrize(
    ("edges", "named"),
    [([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]], []), ([[0, 1], [1, 2], [2, 3], [2, 4], [3, 4]], [4])],
)
def test_agents_whose_neighbours_share_a_worker_are_named(quick_content, caplog, edges, named):
    """With workers 0-1, 2-3 and 4: on the ring 4 has a neighbour in each of the others, else both in one."""
    content = quick_content | {"runtime": {"kind": "ray", "agents_per_worker": 2}}
    config = masked(content, "explicit", edges=edges, gossip_rounds=40)
    prepare_masks(config, build_topology(config, "c")[0], "c")
    words = "from a single neighbour or its worker, which knows all their masks"
    assert [record.getMessage() for record in caplog.records] == [
        f"c: topology.masked: nothing hides the values of agent {agent} {words}" for agent in named
    ]


def test_masks_follow_from_the_seed_or_a_secret(quick_content, monkeypatch):
    config = masked(quick_content, n_agents=4, mask_key_env="MASKS")
    graph, _ = build_topology(config, "c")
    with pytest.raises(UsageError, match=r"^c: topology.mask_key_env: the environment variable MASKS is not set$"):
        prepare_masks(config, graph, "c")
    monkeypatch.setenv("MASKS", "secret")
    keys = prepare_masks(config, graph, "c")
    assert list(keys) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert len({*keys.values(), *prepare_masks(masked(quick_content, n_agents=4), graph, "c").values()}) == 8
    other = prepare_masks(config.model_copy(update={"seed": config.seed + 1}), graph, "c")
    assert not {*keys.values()} & {*other.values()}
    assert prepare_masks(config, graph, "c") == keys
    assert prepare_masks(config_of(quick_content), graph, "c") is None


def test_the_signal_scales_mask_is_in_its_own_unit(quick_content):
    """Signals of four agents are about a quarter of a reward, and their mean squares a sixteenth."""
    config = masked(quick_content, n_agents=4)
    graph, _ = build_topology(config, "c")
    keys = prepare_masks(config, graph, "c")
    nothing_mixed = MatrixMixer(torch.eye(4), 1)
    learner = build_learner(config, build_agents(config, "c", CPU), nothing_mixed, range(4), mask_keys=keys)
    masks = Masks(keys, range(4))
    for each in (learner.masks, masks):
        each.begin(graph, 0)
    common = masks.draw(1)[:, 0]
    scale = learner.scale.update(torch.ones(4, 3), torch.ones(4, dtype=torch.bool))
    expected = (1 + 10 / 16 * common).clamp_min(1 / 4) ** -0.5
    assert scale.tolist() == pytest.approx(expected.clamp_max(1).tolist(), rel=1e-3)
    assert scale.min() < 0.9


def test_a_lazy_path_of_three_by_hand(quick_content):
    """Half of Metropolis' (2/3, 1/3, 0; 1/3, 1/3, 1/3; 0, 1/3, 2/3), half of the identity."""
    topology = {"graph": "explicit", "edges": [[0, 1], [1, 2]], "laziness": 0.5}
    graph, matrix = build_topology(config_of(quick_content, agents=three(quick_content), topology=topology), "c")
    assert graph.sum(-1).tolist() == [1, 2, 1]
    expected = torch.tensor([[5, 1, 0], [1, 4, 1], [0, 1, 5]], dtype=torch.float64) / 6
    torch.testing.assert_close(matrix, expected)


def test_random_graphs_follow_the_seed(quick_content):
    agents = [quick_content["agents"][0]] * 8
    topology = {"graph": "random", "edge_probability": 0.4, "matrix": "sinkhorn"}
    graphs = [
        build_topology(config_of(quick_content, agents=agents, topology=topology, seed=seed), "c") for seed in (3, 3, 4)
    ]
    assert torch.equal(graphs[0][0], graphs[1][0])
    assert torch.equal(graphs[0][1], graphs[1][1])
    assert not torch.equal(graphs[0][0], graphs[2][0])


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ({"graph": "explicit", "edges": [[0, 2]]}, r"edges: \[0, 2\] must name two different agents between 0 and 1"),
        ({"graph": "explicit", "edges": [[1, 1]]}, r"edges: \[1, 1\] must name two different agents"),
        ({"graph": "explicit", "edges": []}, "does not connect all 2 agents"),
        ({"graph": "explicit"}, "edges: needed for graph explicit"),
        ({"edges": [[0, 1]]}, "edges: only allowed with graph explicit"),
        ({"matrix": "given", "weights": [[1.0]]}, "weights: 2 rows of 2 numbers are needed"),
        ({"matrix": "given", "weights": [[0.5, 0.4], [0.5, 0.5]]}, "row 0 sums to 0.9"),
    ],
)
def test_wrong_topologies_are_one_line_before_any_model_loads(quick_content, topology, message):
    config = config_of(quick_content, topology=topology, model={"name": "/nowhere/at/all"})
    with pytest.raises(UsageError, match=rf"^c.yaml: topology: .*{message}") as caught:
        build(config, "c.yaml", CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"agents": [{"reward_model": "no/card.yaml"}]},
            "c.yaml: agents.0.reward_model: 'no/card.yaml' does",
        ),
        ({"prompts": {"source": "jsonl", "path": "no.jsonl"}}, "c.yaml: prompts.path: 'no.jsonl' does not exist"),
        ({"controller": {"kind": "scripted", "next_prompts": ["{{ no }}"]}}, "c.yaml: controller: template error"),
    ],
)
def test_missing_files_are_reported_before_any_model_loads(quick_content, change, message):
    with pytest.raises(UsageError, match=message):
        build(config_of(quick_content, model={"name": "/nowhere/at/all"}, **change), "c.yaml", CPU)


def test_more_tokens_than_the_model_reads_are_refused(quick_content):
    fits = {"max_prompt_tokens": 509, "max_new_tokens": 3}
    build_agents(config_of(quick_content, generation=fits), "c", CPU)
    config = config_of(quick_content, generation={"max_prompt_tokens": 510, "max_new_tokens": 3})
    with pytest.raises(
        UsageError, match=r"max_prompt_tokens \+ max_new_tokens is 513; .* has a context of 512"
    ) as caught:
        build(config, "c.yaml", CPU)
    assert str(caught.value).startswith("c.yaml: generation: ")


def test_a_first_prompt_that_does_not_fit_is_refused_with_its_length(quick_content):
    """The template's own tokens are 19: three control tokens, `user`, `assistant` and three line ends."""
    build(config_of(quick_content, prompts={"source": "fixed", "question": "x" * 45}), "c", CPU)
    config = config_of(quick_content, prompts={"source": "fixed", "question": "x" * 46})
    message = r"^c.yaml: prompts: prompt 1 \('x{40}'\.\.\.\) is 65 tokens long .*max_prompt_tokens allows 64$"
    with pytest.raises(UsageError, match=message):
        build(config, "c.yaml", CPU)


def listed(tmp_path, *prompts, **options):
    (tmp_path / "prompts.json").write_text(json.dumps([{"messages": prompt} for prompt in prompts]))
    return {"source": "jsonl", "path": str(tmp_path / "prompts.json"), "column": "messages"} | options


SYSTEM = {"role": "system", "content": "Be kind."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
ASKED = {"role": "user", "content": "q"}


def test_prompts_that_do_not_fit_are_left_out_and_counted_if_bad_rows_are_skipped(quick_content, tmp_path, caplog):
    prompts = listed(tmp_path, "x" * 46, "fits", "y" * 46, [SYSTEM, ASKED])
    with pytest.raises(UsageError, match=r"^c: prompts: prompt 1 \('x{40}'\.\.\.\) is 65 tokens long"):
        build(config_of(quick_content, prompts=prompts), "c", CPU)
    built = build(config_of(quick_content, prompts=prompts | {"on_bad_row": "skip"}), "c", CPU)
    assert built.questions.conversations == [[{"role": "user", "content": "fits"}], [SYSTEM, ASKED]]
    assert {built.questions.index(number) for number in range(2)} == {0, 1}
    assert "prompts.on_bad_row: skip: 2 of 4 prompts are left out; the first: c: prompts: prompt 1 ('xxx" in caplog.text
    nothing_left = listed(tmp_path, "x" * 46, on_bad_row="skip")
    with pytest.raises(UsageError, match="is 65 tokens long"):
        build(config_of(quick_content, prompts=nothing_left), "c", CPU)


def test_a_conversation_that_the_template_refuses_is_one_line(quick_content, tmp_path):
    folder = tmp_path / "alternating"
    shutil.copytree(quick_content["model"]["name"], folder)
    template = folder / "chat_template.jinja"
    twice = "loop.index0 and m['role'] == messages[loop.index0 - 1]['role']"
    check = f"{{% if {twice} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    template.write_text(template.read_text().replace("{% for m in messages %}", "{% for m in messages %}" + check))
    content = quick_content | {"model": {"name": str(folder)}}
    build(config_of(content, prompts=listed(tmp_path, [*EARLIER, ASKED])), "c", CPU)
    with pytest.raises(
        UsageError, match=r"^c: prompts: prompt 1 \('q'...\): the model's chat template refuses it: no$"
    ):
        build(config_of(content, prompts=listed(tmp_path, [ASKED, ASKED])), "c", CPU)


def test_dialogues_start_with_the_whole_conversation(quick_content, tmp_path):
    """The state is what the tokenizer makes of the messages, and the controller and rewards see the last one."""
    messages = [SYSTEM, *EARLIER, ASKED]
    config = config_of(
        quick_content, prompts=listed(tmp_path, messages), generation={"max_prompt_tokens": 400, "max_new_tokens": 3}
    )
    built = build(config, "c", CPU)
    turn = next(built.player.play(first_prompts(built, 0)))
    expected = tiny_tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert turn.states[0] == expected
    assert set(turn.prompts) == {"q"}
    assert built.questions.conversations == [messages]  # playing adds turns to the dialogue, not to the question


def test_the_seed_decides_adapters_and_critics(quick_content):
    first, again, other = (build(config_of(quick_content, seed=seed), "c", CPU).team for seed in (0, 0, 1))
    states = [team.state_dict() for team in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    of_seed = [name for name in states[0] if name.endswith((".adapter", ".critic.weights"))]
    assert not any(torch.equal(states[0][name], states[2][name]) for name in of_seed)
    assert not torch.equal(states[0]["agent_0.adapter"], states[0]["agent_1.adapter"])
    assert torch.equal(states[0]["agent_0.critic.weights"], states[0]["agent_1.critic.weights"])  # one W(0)


def test_adding_an_agent_does_not_change_the_others_adapters(quick_content):
    two = build_agents(config_of(quick_content), "c", CPU).adapters.parameters
    more = build_agents(config_of(quick_content, agents=three(quick_content)), "c", CPU).adapters.parameters
    assert torch.equal(more[:2], two)


def test_an_agent_starts_from_its_adapter_by_default(quick_content, tmp_path):
    agents = build_agents(config_of(quick_content, seed=5), "c", CPU)
    agents.adapters.save(1, tmp_path / "start", "base")
    second = quick_content["agents"][1] | {"adapter": str(tmp_path / "start")}
    config = config_of(quick_content, agents=[quick_content["agents"][0], second])
    fresh = build_agents(config, "c", CPU, start=False).adapters.parameters
    started = build_agents(config, "c", CPU).adapters.parameters
    assert torch.equal(started[0], fresh[0])
    assert torch.equal(started[1], agents.adapters.parameters[1])
    assert not torch.equal(started[1], fresh[1])
    missing = quick_content["agents"][1] | {"adapter": str(tmp_path / "no")}
    with pytest.raises(UsageError, match=r"^c: agents.0.adapter: .*adapter_config.json' does not exist"):
        build_agents(config_of(quick_content, agents=[missing]), "c", CPU)


def test_optimizer_and_kind_of_critic_follow_the_config(quick_content):
    adam = build(config_of(quick_content), "c", CPU).team.learner
    assert adam.optimizer is not None
    assert adam.features.part_lengths == (64,)
    actor = {"signal": "q_value", "credit": "consensus", "optimizer": "normalised"}
    learner = build(config_of(quick_content, actor=actor), "c", CPU).team.learner
    assert learner.optimizer is None
    assert learner.features.part_lengths == (64, 3, 3)  # the state and every agent's response
    assert learner.mixer.own_share == 0.5
    assert (learner.scale, adam.scale is None) == (None, False)
    assert [learner.turn_weights(k) for k in range(3)] == [1.0, 1.0, 1.0]
    content = quick_content | {"discount": 0.5, "actor": {"turn_weights": "discounted"}}
    discounted = build(config_of(content), "c", CPU).team.learner
    assert [discounted.turn_weights(k) for k in range(3)] == [1.0, 0.5, 0.25]


def test_errors_that_are_not_about_memory_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), fits_into_memory("c"):
        raise RuntimeError("shapes differ")
    with pytest.raises(UsageError, match=r"^c: does not fit into memory \(MemoryError\)"), fits_into_memory("c"):
        raise MemoryError


def test_agents_with_the_same_card_share_its_memory(quick_content):
    first, second = quick_content["agents"]
    config = config_of(quick_content, agents=[first, second, first])
    models = build(config, "c", CPU).team._scorers
    assert models[0] is models[2]
    assert models[0] is not models[1]


@pytest.mark.parametrize(
    "problem",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")],
)
def test_what_does_not_fit_into_memory_is_one_line(quick_content, monkeypatch, problem):
    def full(*arguments, **options):
        raise problem

    monkeypatch.setattr("rlhf_marl.training.build.CriticFeatures", full)
    with pytest.raises(UsageError, match=r"c.yaml: does not fit into memory \(.*\): model, lora.rank, critic.width"):
        build(config_of(quick_content), "c.yaml", CPU)


def test_float64_is_everywhere(quick_content):
    """All that training changes, the features and the scale of the steps; a step keeps it."""
    config = config_of(quick_content, model=quick_content["model"] | {"dtype": "float64"})
    experiment = build(config, "c", CPU)
    run_iteration(experiment, 0, 0, Stopwatch(CPU))
    counters = ("step", "updates")
    state = experiment.team.state_dict()
    assert {tensor.dtype for name, tensor in state.items() if not name.endswith(counters)} == {torch.float64}
    assert experiment.team.learner.features([[5, 6]]).dtype == torch.float64


def test_a_share_of_the_agents_begins_as_in_the_whole_team(quick_content):
    config = config_of(quick_content, agents=three(quick_content))
    whole, share = (build_agents(config, "c", CPU, numbers=numbers) for numbers in (None, [2, 1]))
    assert torch.equal(share.adapters.parameters, whole.adapters.parameters[[2, 1]])
    learner = build_learner(config, share, MatrixMixer(torch.eye(3), 1), [2, 1])
    assert len(learner.critic.weights) == len(learner.scale.second_moment) == 2
