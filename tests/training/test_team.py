"""LocalTeam: responses, scores, and state that restores exactly."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rlhf_marl.algorithm.topology import adjacency
from rlhf_marl.config import check_config
from rlhf_marl.config.schema import RewardConfig
from rlhf_marl.dialogue.controller import Merged
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.dialogue.speakers import Decoding
from rlhf_marl.errors import RunStopped
from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.sampler import Sample, TransformersSampler
from rlhf_marl.rewards.python_callable import CallableCard
from rlhf_marl.training.build import build
from rlhf_marl.training.loop import first_prompts, with_successors
from rlhf_marl.training.team import LocalTeam
from tests.conftest import tiny_llama, tiny_tokenizer

CARDS = [
    CallableCard(kind="callable", name="long", function="x:y", scale=2.0, offset=1.0),
    CallableCard(kind="callable", name="vowels", function="x:y", scale=0.5),
    CallableCard(kind="callable", name="third", function="x:y"),
]


class FakeSampler:
    """Answers with the row's number and records the requests."""

    def __init__(self):
        self.asked = []

    def sample(self, prompts, keys, **options):
        self.asked.append((list(prompts), list(keys), options))
        return [Sample([row], f"text {row}", [0.0], True) for row in range(len(keys))]


class FakeScorer:
    def __init__(self, score):
        self.function, self.asked = score, []

    def score(self, prompts, responses):
        self.asked.append((prompts, responses))
        return [self.function(text) for text in responses]


def team_of(sampler=None, learner=None, scorers=(), n_agents=2, **reward):
    learner = learner or SimpleNamespace(decodings=[Decoding(slice(None), 6, 0.7)], value=lambda turn: None)
    return LocalTeam(
        sampler or FakeSampler(),
        learner,
        CARDS[:n_agents],
        scorers,
        numbers=range(n_agents),
        reward=RewardConfig(**reward),
        adjacency=adjacency("ring", n_agents),
        gossip_rounds=5,
        seed=9,
    )


def turn_of(texts):
    return Turn(
        number=0,
        dialogues=[0, 1],
        questions=[0, 0],
        prompts=["why?", "who?"],
        states=[[1], [2]],
        observations=[[[1], [2]]] * 2,
        lengths=[1, 1],
        samples=[[Sample([5], text, [0.0], True) for text in agent] for agent in texts],
        merged=[Merged("", None, fallback=False)] * 2,
        next_states=[[1], [2]],
    )


def test_all_agents_answer_all_states_in_one_batch_with_keys_of_their_own():
    sampler = FakeSampler()
    samples = team_of(sampler).respond([[[1, 2], [3]], [[4], [5]]], [4, 7], 1)
    ((prompts, keys, options),) = sampler.asked
    assert prompts == [[1, 2], [3], [4], [5]]
    assert keys == [
        SamplingKey(seed=9, agent=agent, dialogue=dialogue, turn=1) for agent in (0, 1) for dialogue in (4, 7)
    ]
    assert options == {"max_new_tokens": 6, "temperature": 0.7, "agents": slice(None)}
    assert [[s.text for s in agent] for agent in samples] == [["text 0", "text 1"], ["text 2", "text 3"]]


def test_adding_an_agent_does_not_change_what_others_are_asked_or_answer():
    answers = {}
    for n_agents in (2, 3):
        model = tiny_llama(layers=1)
        adapters = StackedAdapters(model, range(n_agents), rank=2, alpha=4.0, targets=["q_proj"], where="c")
        sampler = TransformersSampler(ChatModel(model, tiny_tokenizer(), [2]), adapters)
        answers[n_agents] = team_of(sampler, n_agents=n_agents).respond([[[5, 6], [7]]] * n_agents, [0, 1], 0)
    assert [[s.tokens for s in agent] for agent in answers[3][:2]] == [[s.tokens for s in a] for a in answers[2]]
    assert answers[3][2] != answers[3][0]


def test_each_agent_scores_its_own_answers_on_its_own_scale():
    scorers = [FakeScorer(len), FakeScorer(lambda text: text.count("a"))]
    learner = SimpleNamespace(value=lambda turn: torch.ones(2, len(turn.states)))
    team, turn = team_of(scorers=scorers, learner=learner), turn_of([["banana", "xy"], ["papaya", "b"]])
    scored = team.score(turn)
    assert scored.value.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert team.reward_models == ["long", "vowels"]
    assert scored.reward_raw.tolist() == [[6.0, 2.0], [3.0, 0.0]]
    assert scored.reward_scaled.tolist() == [[3.5, 1.5], [6.0, 0.0]]  # (raw + 1) / 2 and raw / 0.5
    assert scored.reward_raw.dtype == scored.reward_scaled.dtype == torch.float32
    assert [scorer.asked for scorer in scorers] == [
        [(["why?", "who?"], ["banana", "xy"])],
        [(["why?", "who?"], ["papaya", "b"])],
    ]
    assert scored.samples is turn.samples
    assert turn.reward_raw.numel() == 0


def test_rewards_of_the_teams_answer_and_of_both():
    """Lengths on a scale of (raw + 1) / 2, and letters a on one of raw / 0.5; the team's answers are "aa" and "a"."""
    scorers = [FakeScorer(len), FakeScorer(lambda text: text.count("a"))]
    turn = replace(
        turn_of([["banana", "xy"], ["papaya", "b"]]), merged=[Merged("aa", None, False), Merged("a", None, False)]
    )
    team = team_of(scorers=scorers, of="team").score(turn)
    assert team.reward_raw.tolist() == [[2.0, 1.0], [2.0, 1.0]]
    assert team.reward_scaled.tolist() == [[1.5, 1.0], [4.0, 2.0]]
    both = team_of(scorers=scorers, of="both", team_weight=0.25).score(turn)
    assert both.reward_raw.tolist() == [[0.75 * 6 + 0.5, 0.75 * 2 + 0.25], [0.75 * 3 + 0.5, 0.25]]
    assert both.reward_scaled.tolist() == [[0.75 * 3.5 + 0.375, 0.75 * 1.5 + 0.25], [0.75 * 6 + 1, 0.5]]


def test_a_bad_score_names_the_agent():
    team = team_of(scorers=[FakeScorer(len), FakeScorer(lambda text: float("nan"))])
    with pytest.raises(RunStopped, match=r"agent 1: reward model 'vowels' returned nan"):
        team.score(turn_of([["a", "b"], ["c", "d"]]))


def test_bytes_that_gossip_sent_by_hand():
    """Two agents, one link each way; 10 weights and 2 + 2 TD errors of 4 bytes, five rounds."""
    learner = SimpleNamespace(
        gossiped=lambda turns: 40 + 4 * sum(len(turn.states) for turn in turns),
        begin=lambda turns, adjacency: None,
        update=lambda turns: [{"kl": 1.0}, {"kl": 2.0}],
    )
    turn = turn_of([["a", "b"], ["c", "d"]])
    rows = team_of(learner=learner).learn([turn, turn])
    assert rows == [{"kl": 1.0, "gossip_bytes": 560}, {"kl": 2.0, "gossip_bytes": 560}]


@pytest.fixture
def experiment(quick_content):
    return build(check_config(quick_content, "c"), "c", torch.device("cpu"))


def played(experiment, iteration=0):
    turns = map(experiment.team.score, experiment.player.play(first_prompts(experiment, iteration)))
    return list(with_successors(turns, experiment))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_restored_state_continues_alike(experiment):
    """Answers and updates, from a state before the first step and from one after it."""
    team = experiment.team
    for iteration in range(2):
        before = team.state_dict()
        kept = {name: tensor.clone() for name, tensor in before.items()}
        turns = played(experiment, iteration)
        rows, after = team.learn(turns), team.state_dict()
        assert same(before, kept)  # a copy
        assert not same(after, before)
        team.load_state_dict(before)
        assert same(team.state_dict(), before)
        again = played(experiment, iteration)
        assert [turn.tokens for turn in again] == [turn.tokens for turn in turns]
        assert team.learn(again) == rows
        assert same(team.state_dict(), after)


def test_a_state_goes_over_to_another_team(experiment, quick_content):
    other = build(check_config(quick_content | {"seed": 5}, "c"), "c", torch.device("cpu"))
    turns = played(experiment)
    experiment.team.learn(turns)
    state = experiment.team.state_dict()
    assert not same(other.team.state_dict(), state)
    other.team.load_state_dict(state)
    assert same(other.team.state_dict(), state)


def test_the_state_has_these_names(experiment):
    team = experiment.team
    moments = [
        f"{of}.{name}" for of in ("actor_optimizer", "critic.adam") for name in ("step", "exp_avg", "exp_avg_sq")
    ]
    scale = ["signal_scale.second_moment", "signal_scale.updates"]
    names = {f"agent_{i}.{name}" for i in range(2) for name in ("adapter", "critic.weights", *moments, *scale)}
    assert set(team.state_dict()) == names
    team.learn(played(experiment))
    assert set(team.state_dict()) == names
    assert torch.equal(team.state_dict()["agent_1.adapter"], team.learner.adapters.parameters[1].detach())


def test_saved_adapters_are_each_agents_own_and_replace_a_folder(experiment, tmp_path):
    folder = tmp_path / "adapters"
    (folder / "agent_7").mkdir(parents=True)
    experiment.team.save_adapters(folder)
    assert sorted(path.name for path in tmp_path.glob("adapters*")) == ["adapters"]
    assert sorted(path.name for path in folder.iterdir()) == ["agent_0", "agent_1"]
    parameters = experiment.team.learner.adapters.parameters.detach()
    for agent in range(2):
        assert (folder / f"agent_{agent}" / "adapter_config.json").is_file()
        weights = load_file(folder / f"agent_{agent}" / "adapter_model.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) == parameters.shape[1]
        total = sum(tensor.double().square().sum() for tensor in weights.values())
        torch.testing.assert_close(total, parameters[agent].double().square().sum())


def test_a_response_without_its_end_costs_the_penalty():
    learner = SimpleNamespace(value=lambda turn: None)
    turn = turn_of([["banana", "xy"], ["papaya", "b"]])
    turn.samples[0][1] = Sample([5], "xy", [0.0], finished=False)
    plain, charged = (
        team_of(scorers=[FakeScorer(len)] * 2, learner=learner, missing_end_penalty=penalty).score(turn)
        for penalty in (0.0, 0.75)
    )
    assert (plain.reward_scaled - charged.reward_scaled).tolist() == [[0.0, 0.75], [0.0, 0.0]]
    assert plain.reward_raw.tolist() == charged.reward_raw.tolist()


def test_length_costs_the_penalty_per_token():
    learner = SimpleNamespace(value=lambda turn: None)
    turn = turn_of([["banana", "xy"], ["papaya", "b"]])
    turn.samples[0][1] = Sample([5, 5, 5], "xy", [0.0] * 3, finished=True)
    turn.samples[1][0] = Sample([5, 2], "papaya", [0.0] * 2, finished=True)
    plain, charged = (
        team_of(scorers=[FakeScorer(len)] * 2, learner=learner, length_penalty=penalty).score(turn)
        for penalty in (0.0, 0.5)
    )
    lengths = [[len(sample.tokens) for sample in agent] for agent in turn.samples]
    assert (lengths[0][1], lengths[1][0]) == (3, 2)
    difference = plain.reward_scaled - charged.reward_scaled
    assert difference[0, 1] == 1.5
    assert difference[1, 0] == 1.0


def test_a_reward_model_that_asks_for_the_dialogue_gets_its_messages(monkeypatch):
    scorers, talks = [FakeScorer(len), FakeScorer(len)], [[{"role": "user", "content": "q"}]] * 2
    monkeypatch.setattr(type(CARDS[0]), "reads_dialogue", property(lambda card: card.name == "long"))
    turn = replace(turn_of([["a", "b"], ["c", "d"]]), conversations=talks)
    team_of(scorers=scorers, learner=SimpleNamespace(value=lambda turn: None)).score(turn)
    assert [scorer.asked[0][0] for scorer in scorers] == [talks, ["why?", "who?"]]
