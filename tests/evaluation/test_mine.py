"""Mining a run: which answers are taken, and what becomes of them."""

import json

import pytest
import torch

import rlhf_marl
from rlhf_marl.errors import UsageError
from rlhf_marl.evaluation import mine as mining
from rlhf_marl.evaluation.mine import Answer, best, mine, repeats, whole_sentences
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.sampler import LocalChat
from rlhf_marl.rewards.preferences import load_pairs
from rlhf_marl.training.build import build_agents


def answers(**rewards):
    return [Answer("p", text, 0, 0, reward) for text, reward in rewards.items()]


def test_the_best_share_of_the_different_answers_best_first():
    given = [*answers(a=1.0, b=4.0, c=3.0, d=2.0), *answers(b=4.0, c=3.0), Answer("p", " ", 0, 0, 9.0)]
    assert [found.text for found in best(iter(given), top=0.5, limit=10)] == ["b", "c"]
    assert [found.text for found in best(iter(given), top=1.0, limit=3)] == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use your own ears - use your own ears", True),  # 4 of 7 word pairs are distinct
        ("one two one two three four", False),  # 4 of 5
        ("one two one two one four", True),  # 3 of 5
        ("Stay calm and breathe slowly.", False),
        ("", True),
    ],
)
def test_repeats_below_four_fifths(text, expected):
    assert repeats(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stay calm. Ask why! Then you", "Stay calm. Ask why!"),
        ("It costs 3.50 euros. Pay 2.5", "It costs 3.50 euros."),
        ("no end", ""),
        ("Do both. First:\n\n1.", "Do both."),
        ("One\n\nTwo. ", "One\n\nTwo."),
    ],
)
def test_whole_sentences(text, expected):
    assert whole_sentences(text) == expected


def say(path, texts, rewards):
    """Let a finished run's agents have said these texts to one prompt, with these rewards."""
    turns = [json.loads(line) for line in (path / "dialogues.jsonl").read_text("utf-8").splitlines()]
    for turn, said, reward in zip(turns, texts, rewards, strict=True):
        turn["prompt"], turn["aggregate"] = "hi?", f"team {said}"
        turn["responses"] = [{**response, "text": said} for response in turn["responses"]]
        turn["reward_scaled"] = [reward, -reward]
    (path / "dialogues.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns), "utf-8")


@pytest.fixture
def played(quick_content, tmp_path, monkeypatch):
    """A run of four turns; its base model answers in sentences, as likely as given."""
    rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    likelihoods = {"fluent enough": -1.0, "unlikely thing": -9.0}
    monkeypatch.setattr(mining, "_base_answers", lambda *_: (["Hello there, my friend. And"], [-2.0]))
    monkeypatch.setattr(
        mining, "_log_probabilities", lambda agents, config, rows: [likelihoods.get(text, -1.0) for _, text in rows]
    )
    return tmp_path / "run"


def test_rewarded_junk_becomes_pairs_that_a_card_can_read(played, run):
    """Agent 0 likes the last three, best the last; agent 1 the first, which is fluent."""
    say(played, ["fluent enough", "so so so so so", "fluent too", "unlikely thing"], [1.0, 3.0, 2.0, 4.0])
    code, printed, _ = run("reward", "mine", str(played), "--to", "mined.jsonl", "--top", "0.5")
    assert code == 0
    assert printed.splitlines()[0] == "agent 0: 1 repeat themselves, 1 are unlikely"
    pairs = load_pairs(str(played.parent / "mined.jsonl"), "x")
    assert [(pair.texts, pair.junk) for pair in pairs] == [
        (("hi?", "Hello there, my friend.", "unlikely thing"), "unlikely"),
        (("hi?", "Hello there, my friend.", "so so so so so"), "repeats"),
    ]


def test_nothing_is_written_where_nothing_is_junk(played, run):
    say(played, ["fluent enough"] * 4, [1.0] * 4)
    code, printed, _ = run("reward", "mine", str(played), "--to", "mined.jsonl")
    assert (code, printed) == (0, "no junk among the answers with the highest rewards; nothing written\n")
    assert not (played.parent / "mined.jsonl").exists()


def test_the_team_s_answers_are_taken_where_they_were_rewarded(played):
    say(played, ["so so so so so"] * 4, [1.0] * 4)
    config = played / "config.yaml"
    config.write_text(
        config.read_text("utf-8").replace("of: response", "of: team").replace("credit: local", "credit: consensus")
    )
    rows = mine(played, top=1.0, limit=10)
    assert {row["rejected"] for row in rows} == {"team so so so so so"}


def test_likelihoods_are_those_of_the_base_model(tiny_config):
    """By token, against a plain forward pass; those of its own answers at the agents' limit of six tokens."""
    agents = build_agents(tiny_config, "x", torch.device("cpu"))
    tokenizer = agents.chat_model.tokenizer

    def by_hand(prompt, tokens):
        chat = [{"role": "user", "content": prompt}]
        state = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad(), agents.adapters.use(None):
            logits = agents.chat_model.model(torch.tensor([state + tokens])).logits[0]
        places = torch.arange(len(state) - 1, len(state) + len(tokens) - 1)
        return logits.log_softmax(-1)[places, torch.tensor(tokens)].mean().item()

    rows = [("hi?", "abc"), ("and you?", "no, not I")]
    expected = [by_hand(prompt, tokenizer(text)["input_ids"]) for prompt, text in rows]
    assert mining._log_probabilities(agents, tiny_config, rows) == pytest.approx(expected, abs=1e-4)
    state = mining._state(agents, tiny_config, "hi?")
    key = SamplingKey(tiny_config.seed, 0, 0, 0)
    (sampled,) = agents.sampler.sample([state], [key], max_new_tokens=6, temperature=1.0, agents=None)
    texts, likelihoods = mining._base_answers(agents, tiny_config, ["hi?"])
    assert likelihoods == pytest.approx([by_hand("hi?", sampled.tokens)], abs=1e-4)
    assert texts == LocalChat(agents.sampler)([[{"role": "user", "content": "hi?"}]], 64)


def test_what_is_no_run_or_has_no_dialogues_is_one_line(tmp_path, quick_content):
    with pytest.raises(UsageError, match=r"reward mine: '.*' is not a run directory"):
        mine(tmp_path, top=1.0, limit=1)
    rlhf_marl.train(quick_content, run_dir=tmp_path / "run")
    (tmp_path / "run" / "dialogues.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"reward mine: '.*' has no finished dialogues yet"):
        mine(tmp_path / "run", top=1.0, limit=1)


def test_answers_without_a_recorded_reward_are_left_out(tmp_path, played):
    """Rewards are null if they are private, or if the agent was lost."""
    turn = {"prompt": "p", "aggregate": "t", "iteration": 0, "responses": [{"text": "a"}, {"text": "b"}]}
    turns = [turn | {"reward_scaled": [None, 1.0]}, turn | {"reward_scaled": [2.0, None]}]
    assert [answer.reward for answer in mining._scored(turns, 0, of="response")] == [2.0]
    rows = [json.loads(line) for line in (played / "dialogues.jsonl").read_text().splitlines()]
    private = [row | {"reward_scaled": [None] * len(row["reward_scaled"])} for row in rows]
    (played / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in private))
    with pytest.raises(UsageError, match=r"reward mine: '.*' has no recorded rewards \(runtime.private_rewards\)$"):
        mine(played, top=1.0, limit=1)
