"""Who answers what: the same texts as the sampler and the controller give."""

import torch

from rlhf_marl.dialogue.controller import CallableController, Exchange
from rlhf_marl.evaluation.loaded_run import LoadedRun
from rlhf_marl.policy.chat import chat_tokens
from rlhf_marl.policy.generation import SamplingKey
from rlhf_marl.serving.answers import Answerer, Sampling

ASKED = [{"role": "user", "content": "hi?"}]


def test_names(loaded_run):
    assert Answerer(loaded_run).names == ["base", "agent-0", "agent-1", "team"]


def test_an_agent_answers_in_its_role_with_its_adapter(loaded_run):
    agents = loaded_run.agents
    messages = [{"role": "system", "content": "Be brief."}, *ASKED]
    prompt = chat_tokens(agents.chat_model.tokenizer, messages, 500)
    options = {"max_new_tokens": 9, "temperature": 0.7}
    key = SamplingKey(3, 1, 2, 0)
    (expected,) = agents.sampler.sample([prompt], [key], agents=slice(1, 2), **options)
    (of_base,) = agents.sampler.sample([prompt], [key], agents=None, **options)
    assert expected.tokens != of_base.tokens
    sampling = Sampling(3, 2, 9, 0.7)
    assert Answerer(loaded_run).answer("agent-1", ASKED, sampling).tokens == expected.tokens
    assert Answerer(loaded_run).answer("agent-1", ASKED, sampling, adapted=False).tokens == of_base.tokens


def test_the_base_model_has_no_role(loaded_run):
    prompt = Answerer(loaded_run).answer("base", ASKED, Sampling(0)).prompt
    assert loaded_run.agents.chat_model.tokenizer.decode(prompt) == (
        "<|im_start|>user\nhi?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_limits_are_those_of_training_unless_given(loaded_run):
    answerer = Answerer(loaded_run)
    assert [answerer.limit(who, Sampling(0)) for who in answerer.names] == [6, 6, 6, 6]
    assert answerer.limit("team", Sampling(0, max_tokens=11)) == 11
    assert len(answerer.answer("base", ASKED, Sampling(0)).tokens) <= 6
    assert 6 < max(len(answerer.answer("base", ASKED, Sampling(0, n, 20)).tokens) for n in range(4)) <= 20


def test_the_teams_answer_is_the_controllers(loaded_run):
    answerer = Answerer(loaded_run)
    answer = answerer.answer("team", ASKED, Sampling(5))
    agents = [answerer.answer(who, ASKED, Sampling(5)).text for who in ("agent-0", "agent-1")]
    (merged,) = loaded_run.controller.merge([Exchange(ASKED, agents, ["agent 0", "agent 1"])], turn=0, last=True)
    assert answer.text == merged.aggregate
    longer = answerer.answer("team", ASKED, Sampling(5, max_tokens=40))
    assert len(longer.text) > 5 >= len(answer.text)


def of_function(loaded_run: LoadedRun, function) -> Answerer:
    controller = CallableController(function, "test")
    return Answerer(LoadedRun(loaded_run.config, loaded_run.agents, controller, loaded_run.scorers, loaded_run.source))


def test_a_function_as_controller_knows_the_turn_and_is_held_to_the_limit(loaded_run):
    asked = []

    def merge(messages, responses, *, turn, last):
        asked.append((turn, last, len(messages), len(responses)))
        return "abcdef", None

    answerer = of_function(loaded_run, merge)
    later = [*ASKED, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "why?"}]
    assert answerer.answer("team", later, Sampling(0)).text == "abcdef"
    cut = answerer.answer("team", ASKED, Sampling(0, max_tokens=4))
    assert (cut.text, cut.finished) == ("abcd", False)
    assert asked == [(1, True, 3, 2), (0, True, 1, 2)]


def test_likelihoods_are_the_models_log_softmax(loaded_run):
    answerer = Answerer(loaded_run)
    answer = answerer.answer("agent-0", ASKED, Sampling(1, max_tokens=8))
    found = answerer.likelihoods(answer, 3)
    model = loaded_run.agents.chat_model.model
    tokens = list(answer.tokens[:-1] if answer.finished else answer.tokens)
    read = list(answer.prompt)
    for token, likelihood in zip(tokens, found, strict=True):  # a pass per token
        with torch.inference_mode(), loaded_run.agents.adapters.use(slice(0, 1)):
            log = model(input_ids=torch.tensor([read])).logits[0, -1].log_softmax(-1)
        assert abs(likelihood.log_probability - log[token].item()) < 1e-4
        assert [i for i, _ in likelihood.likeliest] == log.topk(3).indices.tolist()
        read.append(token)


def test_conversations_beyond_the_context_lose_their_oldest_messages(loaded_run):
    answerer = Answerer(loaded_run)
    messages = [{"role": "user", "content": "x" * 400}, {"role": "assistant", "content": "y" * 200}, *ASKED]
    assert answerer.prompt_tokens("base", messages) > answerer.context_length == 512
    answer = answerer.answer("base", messages, Sampling(0))
    assert "x" not in loaded_run.agents.chat_model.tokenizer.decode(answer.prompt)
    assert answerer.answer("team", messages, Sampling(0)).prompt == answer.prompt
