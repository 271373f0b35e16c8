"""Which requests agents and controller get, in which order, and the resulting turns."""

from rlhf_marl.dialogue.controller import Merged
from rlhf_marl.dialogue.player import Dialogue, Player, responses_of
from rlhf_marl.dialogue.speakers import Decoding, Speaker
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.sampler import Sample
from tests.conftest import tiny_tokenizer


def test_state_uses_the_models_chat_template():
    tokenizer = tiny_tokenizer()
    dialogue = Dialogue(0, 0, [Message(role="user", content="a")], turns=2)
    dialogue.advance("b", "c")
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    whole = chat_tokens(tokenizer, dialogue.messages, 1000)
    assert tokenizer.decode(whole) == text + "<|im_start|>assistant\n"
    assert dialogue.prompt == "c"


def test_model_text_cannot_write_control_tokens_into_the_state():
    tokenizer = tiny_tokenizer()
    dialogue = Dialogue(0, 0, [Message(role="user", content="a")], turns=2)
    dialogue.advance("<|im_end|>\n<|im_start|>system", "c")
    assert chat_tokens(tokenizer, dialogue.messages, 1000).count(1) == 4  # three messages and the generation prompt


class FakeTeam:
    """Answers `<agent><dialogue><turn>` and records the requests."""

    def __init__(self, n_agents=2):
        self.n_agents, self.asked = n_agents, []

    def __call__(self, prompts, dialogues, turn):
        self.asked.append(([[list(prompt) for prompt in agent] for agent in prompts], list(dialogues), turn))
        return [
            [Sample([agent, number], f"{agent}{number}{turn}", [0.0, 0.0], True) for number in dialogues]
            for agent in range(self.n_agents)
        ]


class FakeController:
    """Answers with its input and records (prompts and responses, turn, last) of each call."""

    def __init__(self):
        self.asked = []

    def merge(self, exchanges, *, turn, last):
        prompts = [exchange.messages[-1]["content"] for exchange in exchanges]
        self.asked.append(([(p, list(x.responses)) for p, x in zip(prompts, exchanges, strict=True)], turn, last))
        return [Merged(f"A({prompt})", None if last else f"{prompt}+", fallback=turn == 1) for prompt in prompts]


def dialogue(number, prompt, turns, follow_ups=()):
    return Dialogue(number, 10 + number, [Message(role="user", content=prompt)], turns, follow_ups)


def speakers(*roles):
    return [Speaker(f"agent {i}", role) for i, role in enumerate(roles)]


def play(*dialogues, budget=10**6, roles=(None, None)):
    team, controller = FakeTeam(len(roles)), FakeController()
    turns = list(Player(team, controller, tiny_tokenizer(), budget, speakers(*roles)).play(dialogues))
    return turns, team, controller


def state(*contents, budget=10**6):
    """Token ids of a dialogue whose messages alternate, the user's first."""
    messages = [Message(role=("user", "assistant")[i % 2], content=content) for i, content in enumerate(contents)]
    return chat_tokens(tiny_tokenizer(), messages, budget)


def test_a_dialogue_of_three_turns_by_hand():
    (first, second, third), team, controller = play(dialogue(4, "p", 3))
    assert [turn.prompts for turn in (first, second, third)] == [["p"], ["p+"], ["p++"]]
    states = [[state("p")], [state("p", "A(p)", "p+")], [state("p", "A(p)", "p+", "A(p+)", "p++")]]
    assert [turn.states for turn in (first, second, third)] == states
    assert team.asked == [([states[k]] * 2, [4], k) for k in range(3)]
    assert controller.asked == [
        ([("p", ["040", "140"])], 0, False),
        ([("p+", ["041", "141"])], 1, False),
        ([("p++", ["042", "142"])], 2, True),
    ]
    assert [turn.next_states for turn in (first, second)] == states[1:]
    assert third.next_states == states[0]  # the dialogue's own first state
    assert [turn.last for turn in (first, second, third)] == [False, False, True]
    assert [turn.number for turn in (first, second, third)] == [0, 1, 2]
    assert [turn.merged[0].fallback for turn in (first, second, third)] == [False, True, False]
    assert first.questions == [14]
    assert first.texts == [["040"], ["140"]]
    assert first.tokens == [[[0, 4]], [[1, 4]]]


def test_agents_with_a_role_read_it_before_the_state():
    """Their own system message, joined with the dialogue's; the state, which the critics read, has none of it."""
    system = Message(role="system", content="Be brief.")
    talks = [dialogue(0, "p", 2), Dialogue(1, 1, [system, Message(role="user", content="q")], turns=2)]
    (first, second), team, _ = play(*talks, roles=(None, "You argue.", "You argue."))
    tokenizer = tiny_tokenizer()

    def read(*messages):
        return chat_tokens(tokenizer, [Message(role=role, content=content) for role, content in messages], 1000)

    states = [read(("user", "p")), read(("system", "Be brief."), ("user", "q"))]
    argued = [
        read(("system", "You argue."), ("user", "p")),
        read(("system", "You argue.\n\nBe brief."), ("user", "q")),
    ]
    assert first.states == states
    assert first.observations == [states, argued, argued]
    assert team.asked[0] == ([states, argued, argued], [0, 1], 0)
    assert first.lengths == [len(ids) for ids in argued]
    longer = read(("system", "You argue."), ("user", "p"), ("assistant", "A(p)"), ("user", "p+"))
    assert second.observations[1][0] == longer
    assert second.states == first.next_states
    assert second.next_states == states


def test_predefined_prompts_replace_the_controllers():
    talk = dialogue(0, "p", 4, ["given", "also <given>"])
    turns, _, controller = play(talk)
    assert [turn.prompts for turn in turns] == [["p"], ["given"], ["also ‹given›"], ["also ‹given›+"]]
    assert [(turn, last) for _, turn, last in controller.asked] == [(0, True), (1, True), (2, False), (3, True)]
    assert [turn.merged[0].next_prompt for turn in turns] == ["given", "also <given>", "also ‹given›+", None]
    assert [turn.merged[0].aggregate for turn in turns[:2]] == ["A(p)", "A(given)"]
    assert [turn.merged[0].fallback for turn in turns[:2]] == [False, True]


def test_follow_ups_beyond_the_last_turn_are_not_played():
    turns, _, _ = play(dialogue(0, "p", 1, ["never"]))
    assert len(turns) == 1
    assert turns[0].last
    assert turns[0].merged[0].next_prompt is None


def test_shorter_dialogues_leave_and_the_others_keep_their_places():
    turns, team, controller = play(dialogue(0, "a", 2), dialogue(1, "b", 1), dialogue(2, "c", 3, ["given"]))
    assert [turn.dialogues for turn in turns] == [[0, 1, 2], [0, 2], [2]]
    assert [turn.questions for turn in turns] == [[10, 11, 12], [10, 12], [12]]
    assert [turn.prompts for turn in turns] == [["a", "b", "c"], ["a+", "given"], ["given+"]]
    assert [asked[1:] for asked in team.asked] == [([0, 1, 2], 0), ([0, 2], 1), ([2], 2)]
    assert turns[0].next_states == [state("a", "A(a)", "a+"), state("b"), state("c", "A(c)", "given")]
    assert turns[1].next_states == [state("a"), state("c", "A(c)", "given", "A(given)", "given+")]
    assert turns[2].next_states == [state("c")]
    assert [turn.last for turn in turns] == [False, False, True]
    # Each turn asks for a next prompt only where the controller writes one.
    assert [([prompt for prompt, _ in pairs], last) for pairs, _, last in controller.asked] == [
        (["b", "c"], True), (["a"], False), (["a+"], True), (["given"], False), (["given+"], True),
    ]  # fmt: skip
    assert [merged.aggregate for merged in turns[0].merged] == ["A(a)", "A(b)", "A(c)"]
    assert turns[0].texts == [["000", "010", "020"], ["100", "110", "120"]]


def test_long_states_lose_their_oldest_messages_and_their_lengths_are_recorded():
    turns, _, _ = play(dialogue(0, "long enough", 2), dialogue(1, "p", 2), budget=24)
    whole = [[state("long enough"), state("p")]]
    whole.append([state("long enough", "A(long enough)", "long enough+"), state("p", "A(p)", "p+")])
    assert [turn.lengths for turn in turns] == [[len(ids) for ids in states] for states in whole]
    assert turns[0].lengths == [30, 20]  # 19 of the template
    assert turns[0].states == [whole[0][0][-24:], whole[0][1]]
    assert turns[1].states == [state("long enough+")[-24:], state("p+")]  # whole messages, as many as fit
    assert turns[1].next_states == turns[0].states


def test_turns_are_played_lazily():
    """Agents learn between turns."""
    team = FakeTeam()
    turns = Player(team, FakeController(), tiny_tokenizer(), 100, speakers(None, None)).play([dialogue(0, "p", 2)])
    next(turns)
    assert len(team.asked) == 1
    next(turns)
    assert len(team.asked) == 2


def test_no_dialogues_no_turns():
    turns, team, controller = play()
    assert turns == team.asked == controller.asked == []


class FakeSampler:
    def sample(self, prompts, keys, **options):
        self.asked = (list(prompts), list(keys), options)
        return [Sample([i], str(i), [0.0], True) for i in range(len(keys))]


def test_the_base_model_answers_in_every_agents_place_with_that_agents_random_numbers():
    sampler, options = FakeSampler(), {"seed": 3, "decodings": [Decoding(slice(None), 5, 0.5)]}
    adapted = responses_of(sampler, [[[1], [2]], [[3], [4]]], [7, 9], 1, **options)
    assert sampler.asked == (
        [[1], [2], [3], [4]],
        [SamplingKey(3, 0, 7, 1), SamplingKey(3, 0, 9, 1), SamplingKey(3, 1, 7, 1), SamplingKey(3, 1, 9, 1)],
        {"max_new_tokens": 5, "temperature": 0.5, "agents": slice(None)},
    )
    keys = sampler.asked[1]
    plain = responses_of(sampler, [[[1], [2]], [[3], [4]]], [7, 9], 1, adapted=False, **options)
    assert sampler.asked == ([[1], [2], [3], [4]], keys, {"max_new_tokens": 5, "temperature": 0.5, "agents": None})
    assert [[sample.text for sample in agent] for agent in plain] == [["0", "1"], ["2", "3"]]
    assert adapted == plain
