"""The sampler: what determines a row, the fields of a sample, and chat through a fake."""

import math

import pytest
import torch

from rlhf_marl.policy.adapters import StackedAdapters
from rlhf_marl.policy.chat import Message, chat_tokens
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.policy.loading import ChatModel
from rlhf_marl.policy.sampler import LocalChat, Sample, TransformersSampler
from tests.conftest import tiny_llama, tiny_sampler, tiny_tokenizer

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5]]


def adapted(n_agents=3, stop_tokens=(2,)):
    model = tiny_llama(layers=1)
    adapters = StackedAdapters(model, range(n_agents), rank=2, alpha=4.0, targets=["q_proj", "down_proj"], where="c")
    for agent, row in enumerate(adapters.parameters.data):
        row.normal_(0, 0.2, generator=torch.Generator().manual_seed(agent))
    return model, adapters, TransformersSampler(ChatModel(model, tiny_tokenizer(), list(stop_tokens)), adapters)


def sample(sampler, prompts, keys, *, max_new_tokens=6, temperature=1.0, agents=None, **options):
    return sampler.sample(
        prompts, keys, max_new_tokens=max_new_tokens, temperature=temperature, agents=agents, **options
    )


def key(agent=0, dialogue=0, turn=0, seed=0):
    return SamplingKey(seed, agent, dialogue, turn)


def test_keys_alone_decide_the_random_numbers():
    """Not the position in the batch, the other rows, or earlier samples."""
    sampler = tiny_sampler()
    keys = [key(dialogue=0), key(dialogue=1), key(dialogue=0)]
    rows = sample(sampler, [[5, 6, 7]] * 3, keys)
    assert rows[0].tokens == rows[2].tokens != rows[1].tokens
    assert sample(sampler, [[5, 6, 7]], [key(dialogue=1)])[0].tokens == rows[1].tokens
    assert sample(sampler, [[9, 8], [5, 6, 7]], [key(seed=5), key()])[1].tokens == rows[0].tokens
    others = [key(seed=1), key(agent=1), key(turn=1)]
    assert all(row.tokens != rows[0].tokens for row in sample(sampler, [[5, 6, 7]] * 3, others))


def test_a_shorter_limit_is_the_beginning_of_a_longer_one():
    sampler = tiny_sampler()
    long, short = (sample(sampler, PROMPTS, [key(), key()], max_new_tokens=n) for n in (6, 3))
    assert [row.tokens[:3] for row in long] == [row.tokens for row in short]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_are_agent_by_agent_and_a_slice_takes_its_own_agents(temperature):
    _, _, sampler = adapted()
    keys = [key(agent, dialogue) for agent in range(3) for dialogue in range(2)]

    def tokens(agents, chosen):
        chosen = chosen if temperature else ()
        prompts = PROMPTS * len(range(3)[agents])
        return [row.tokens for row in sample(sampler, prompts, chosen, temperature=temperature, agents=agents)]

    everyone = tokens(slice(None), keys)
    assert len(everyone) == 6
    assert tokens(slice(1, 3), keys[2:]) == everyone[2:]
    assert tokens(slice(0, 1), keys[:2]) == everyone[:2]
    assert everyone[:2] != everyone[2:4] != everyone[4:]


def tokens_of(sampler, agents=None):
    return [row.tokens for row in sample(sampler, PROMPTS, (), temperature=0.0, agents=agents)]


def test_without_agents_the_base_model_answers_whatever_the_adapters_hold():
    _, adapters, sampler = adapted()
    plain = TransformersSampler(ChatModel(tiny_llama(layers=1), tiny_tokenizer(), [2]))
    base = tokens_of(sampler)
    assert base == tokens_of(plain)
    assert base != tokens_of(sampler, slice(0, 1))
    with adapters.use(slice(0, 1)):  # whoever spoke before
        assert tokens_of(sampler) == base


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_log_probabilities_are_those_of_each_token_at_the_sampling_temperature(temperature):
    model, adapters, sampler = adapted(2)
    keys = [key(agent, dialogue) for agent in range(2) for dialogue in range(2)]
    rows = sample(sampler, PROMPTS * 2, keys, temperature=temperature, agents=slice(None))
    for number, row in enumerate(rows):
        agent, prompt = number // 2, PROMPTS[number % 2]
        with torch.no_grad(), adapters.use(slice(agent, agent + 1)):
            logits = model(torch.tensor([prompt + row.tokens])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, -1)[torch.arange(len(row.tokens)), torch.tensor(row.tokens)]
        assert row.log_probabilities == pytest.approx(expected.tolist(), abs=1e-4)


def test_greedy_takes_the_most_likely_token():
    model = tiny_llama()
    sampler = TransformersSampler(ChatModel(model, tiny_tokenizer(), [2]))
    (row,) = sample(sampler, [[5, 6, 7]], (), temperature=0.0, max_new_tokens=1)
    with torch.no_grad():
        log_probabilities = model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)
    assert row.tokens == [log_probabilities.argmax().item()]
    assert row.log_probabilities == pytest.approx([log_probabilities.max().item()], abs=1e-5)


def test_finished_means_that_a_stop_token_came_and_it_is_kept():
    free = sample(tiny_sampler(), [[5, 6, 7]], [key()])[0]
    assert not free.finished
    assert len(free.tokens) == len(free.log_probabilities) == 6
    stop = free.tokens[2]
    place = free.tokens.index(stop)
    sampler = TransformersSampler(ChatModel(tiny_llama(), tiny_tokenizer(), [2, stop]))
    (stopped,) = sample(sampler, [[5, 6, 7]], [key()])
    assert stopped.finished
    assert stopped.tokens == free.tokens[: place + 1]
    assert stopped.log_probabilities == pytest.approx(free.log_probabilities[: place + 1])
    (at_the_limit,) = sample(sampler, [[5, 6, 7]], [key()], max_new_tokens=place + 1)
    assert at_the_limit.finished


def test_texts_are_without_special_tokens_and_outer_spaces():
    sampler, tokenizer = tiny_sampler(), tiny_tokenizer()
    rows = sample(sampler, [[i] for i in range(3, 12)], [key(dialogue=d) for d in range(9)])
    for row in rows:
        assert row.text == tokenizer.decode(row.tokens, skip_special_tokens=True).strip()
        assert "<|im_end|>" not in row.text


def test_a_cached_prefix_changes_nothing():
    sampler = tiny_sampler()
    prompts = [[5, 6, 7, 8], [5, 6, 9]]
    keys = [key(), key(dialogue=1)]
    plain = sample(sampler, prompts, keys)
    for _ in range(2):  # read, then remembered
        cached = sample(sampler, prompts, keys, cached_prefix=[5, 6])
        assert [row.tokens for row in cached] == [row.tokens for row in plain]


def test_next_token_is_the_softmax_over_the_candidates():
    model, adapters, sampler = adapted()
    candidates = [20, 30, 5]
    rows = sampler.next_token(PROMPTS, candidates)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        with torch.no_grad(), adapters.use(None):
            logits = model(torch.tensor([prompt])).logits[0, -1].tolist()
        weights = [math.exp(logits[candidate]) for candidate in candidates]
        assert row == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-5)
    with adapters.use(slice(0, 1)):  # it is the base model's, whoever is on
        assert sampler.next_token(PROMPTS, candidates)[1] == pytest.approx(rows[1], abs=1e-5)
    assert sampler.next_token([[5]], [7]) == [[1.0]]


def chat_of(*contents):
    roles = ["system", *["user", "assistant"] * 5]
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]


class FakeSampler:
    """Records the requests."""

    def __init__(self, context_length=1000):
        self.tokenizer, self.context_length, self.asked = tiny_tokenizer(), context_length, []

    def sample(self, prompts, keys, **options):
        self.asked.append((prompts, keys, options))
        return [Sample([number], f"text {number}", [0.0], True) for number in range(len(prompts))]


def test_local_chat_is_greedy_and_keeps_the_worked_examples():
    sampler = FakeSampler()
    conversations = [chat_of("S", "u1", "a1", "one"), chat_of("S", "u1", "a1", "two")]
    assert LocalChat(sampler)(conversations, 7) == ["text 0", "text 1"]
    ((prompts, keys, options),) = sampler.asked
    assert prompts == [chat_tokens(sampler.tokenizer, messages, 10**9) for messages in conversations]
    assert keys == ()
    prefix = options.pop("cached_prefix")
    assert options == {"max_new_tokens": 7, "temperature": 0.0, "agents": None}
    shown = sampler.tokenizer.decode(prefix)
    assert shown.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nu1")
    assert shown.endswith("a1<|im_end|>\n<|im_start|>")  # as far as the template goes on alike
    assert all(prompt[: len(prefix)] == prefix for prompt in prompts)


@pytest.mark.parametrize(
    ("conversations", "agents"),
    [
        ([chat_of("S", "u")], None),  # no worked example
        ([chat_of("S", "u1", "a1", "u")], slice(0, 1)),  # adapters change
    ],
)
def test_local_chat_keeps_nothing_else(conversations, agents):
    sampler = FakeSampler()
    LocalChat(sampler, agents)(conversations, 7)
    assert sampler.asked[0][2]["cached_prefix"] in ((), [])
    assert sampler.asked[0][2]["agents"] == agents


def test_local_chat_leaves_room_for_the_answer():
    sampler = FakeSampler(context_length=30)
    (conversation,) = [chat_of("S", "u1", "a1", "x" * 50)]
    LocalChat(sampler)([conversation], 10)
    whole = chat_tokens(sampler.tokenizer, conversation, 10**9)
    assert sampler.asked[0][0] == [whole[-20:]]
    assert sampler.asked[0][2]["cached_prefix"] == []  # the examples were cut away


def test_local_chat_reads_the_worked_examples_once():
    """The second call reads only the tokens after the examples, and gives the same answer."""
    model = tiny_llama()
    chat = LocalChat(TransformersSampler(ChatModel(model, tiny_tokenizer(), [2])))
    conversation = chat_of("S", "u1", "a1", "hello")
    lengths = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, arguments, options: lengths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    first = chat([conversation], 1)
    once = sum(lengths)
    lengths.clear()
    assert chat([conversation], 1) == first
    hook.remove()
    assert once == len(chat_tokens(tiny_tokenizer(), conversation, 10**9))
    assert sum(lengths) < once / 2
