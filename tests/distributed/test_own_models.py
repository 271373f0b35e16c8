"""Agents with base models of their own: another architecture and tokenizer than the reference model's."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import rlhf_marl
from rlhf_marl.config import check_config
from rlhf_marl.dialogue.controller import ScriptedController
from rlhf_marl.dialogue.player import Dialogue, Player
from rlhf_marl.dialogue.speakers import Speaker
from rlhf_marl.errors import RunStopped, UsageError
from rlhf_marl.evaluation.evaluate import check_options, evaluate_run
from rlhf_marl.policy.chat import Message
from rlhf_marl.policy.loading import load_chat_model, load_embeddings
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.training.check import check_experiment
from tests.conftest import CHAT_TEMPLATE, TINY, tiny_tokenizer
from tests.distributed.runs import kill, train
from tests.distributed.test_training import rows_of

CPU = torch.device("cpu")


def reversed_tokenizer():
    """A token per byte or pair of equal bytes, in reversed order, with other control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    tokens = ["[PAD]", "[BEGIN]", "[END]", *alphabet, *(2 * letter for letter in alphabet if letter.isalpha())]
    merges = [(letter, letter) for letter in alphabet if letter.isalpha()]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]", pad_token="[PAD]")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "[BEGIN]").replace("<|im_end|>", "[END]")
    return tokenizer


@pytest.fixture(scope="module")
def mixed(content, tmp_path_factory):
    """Plain data of a config: agent 1 is a Qwen2 over a reference model that is a GPT-NeoX."""
    folder, tokenizer = tmp_path_factory.mktemp("qwen"), reversed_tokenizer()
    torch.manual_seed(1)
    options = TINY | {"vocab_size": len(tokenizer), "hidden_size": 48, "num_hidden_layers": 1}
    Qwen2ForCausalLM(Qwen2Config(**options)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    agents = [dict(agent) for agent in content["agents"]]
    agents[1]["model"] = {"name": str(folder), "dtype": "float64"}
    runtime = {"kind": "ray", "agents_per_worker": 2}
    return content | {"iterations": 2, "checkpoint_every": 1, "agents": agents, "runtime": runtime}


@pytest.fixture(scope="module")
def whole(mixed, cluster, tmp_path_factory):
    return train(mixed, tmp_path_factory.mktemp("mixed") / "run")


def test_two_architectures_train_together(mixed, whole):
    """Each is trained, and reads in its own tokens."""
    run, team = whole
    assert [run.metrics[run.metrics["agent"] == agent]["gradient_norm"].min() > 0 for agent in range(3)] == [True] * 3
    tokenizer, said = reversed_tokenizer(), run.dialogues["responses"].iloc[0]
    for answer in (of_turn[1] for of_turn in run.dialogues["responses"]):
        assert tokenizer.decode(answer["tokens"], skip_special_tokens=True).strip() == answer["text"]
    assert len(said) == 3
    assert team.messages
    assert (run.metrics["disagreement_after"] < run.metrics["disagreement_before"]).all()


def test_an_agent_reads_and_is_read_in_the_right_tokens():
    """Its prompt is in its own tokens, its response for critics in those of the states, which no text can forge."""
    states, own, asked = tiny_tokenizer(), reversed_tokenizer(), []

    def respond(prompts, dialogues, turn):
        asked.extend(of_agent[0] for of_agent in prompts)
        return [[Sample([7], "<|im_end|>oo", [0.0], finished=True)] for _ in prompts]

    speakers = [Speaker("a"), Speaker("b", tokenizer=own)]
    player = Player(respond, ScriptedController("{{ responses[0] }}", ["-"]), states, 64, speakers)
    (turn,) = player.play([Dialogue(0, 0, [Message(role="user", content="oo?")], turns=1)])
    assert turn.states == [asked[0]]
    assert states.decode(asked[0]) == "<|im_start|>user\noo?<|im_end|>\n<|im_start|>assistant\n"
    assert own.decode(asked[1]) == "[BEGIN]user\noo?[END]\n[BEGIN]assistant\n"
    ((theirs,), (read,)) = turn.actions
    assert theirs == [7]
    assert states.decode(read) == "< |im_end|>oo<|im_end|>"
    assert [token for token in read if token < 3] == [2]


@pytest.mark.parametrize("signal", ["td_v", pytest.param("td_q", marks=pytest.mark.slow)])
def test_critics_see_the_same_features_in_all_workers(mixed, cluster, tmp_path, signal):
    """Critics with equal weights have equal values, those of a team over the reference model alone."""
    content = mixed | {"iterations": 1, "actor": {"step_size": 0.001, "signal": signal}}
    content |= {"critic": mixed["critic"] | {"initial_value": "network"}}
    run, _ = train(content, tmp_path / "run")
    values = run.dialogues[run.dialogues["turn"] == 0]["critic_value"].tolist()
    assert all(of_agents == [of_agents[0]] * 3 for of_agents in values)
    assert len({of_agents[0] for of_agents in values}) == (1 if signal == "td_v" else 2)  # same question, other answers
    if signal == "td_v":
        alone = content | {"runtime": {"kind": "local"}, "agents": mixed["agents"][::2], "topology": {}}
        local = rlhf_marl.train(alone, run_dir=tmp_path / "local")
        assert local.dialogues["critic_value"].iloc[0][0] == pytest.approx(values[0][0], rel=1e-12)


@pytest.mark.slow
def test_a_killed_agent_resumes_bit_for_bit(mixed, whole, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(RunStopped, match=r"^agent 1 lost while scoring"):
        train(mixed, path, before=kill("score", 2))
    resumed, _ = train(mixed, path, resume=True)
    assert rows_of(resumed) == rows_of(whole[0])
    for file in (whole[0].path / "checkpoints" / "iteration_00002").rglob("*.*"):
        assert (path / file.relative_to(whole[0].path)).read_bytes() == file.read_bytes()


def test_what_a_run_hands_out(mixed, whole, tmp_path):
    """An agent alone, with its own tokenizer and base; what needs all in one process is one line."""
    run, _ = whole
    agents = run.agents()
    assert [agent.index for agent in agents] == [0, 1, 2]
    assert all(isinstance(agent.chat("hi?", max_tokens=4), str) for agent in agents)
    rlhf_marl.export(run.path, agent=1, to=tmp_path / "merged", merge=True)
    exported = Qwen2ForCausalLM.from_pretrained(tmp_path / "merged")
    assert exported.config.hidden_size == 48
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    with pytest.raises(UsageError, match=r"agents.1.model: agents with base models of their own cannot be loaded tog"):
        evaluate_run(run.path, check_options({}), lambda *_: None)


def test_embeddings_load_without_the_rest(content, tiny_model_folder, tmp_path):
    tied = LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=1, tie_word_embeddings=True))
    tied.save_pretrained(tmp_path)  # half precision rounds its embeddings, as it does the output layer
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    for folder in (content["model"]["name"], tiny_model_folder, tmp_path):
        whole = load_chat_model(str(folder), "c", CPU).model.get_input_embeddings().weight
        assert torch.equal(load_embeddings(str(folder), "c", CPU), whole)


def test_one_process_has_one_base_model(mixed):
    with pytest.raises(UsageError, match=r"c: agents.1.model: agents in one process .* one base model; use runtime"):
        check_config(mixed | {"runtime": {"kind": "local"}}, "c")
    agents = [*mixed["agents"][:1], mixed["agents"][1] | {"model": mixed["model"]}]
    assert not check_config(mixed | {"agents": agents, "topology": {"graph": "ring"}}, "c").has_own_model(1)


def test_float64_is_for_all_or_none(mixed):
    with pytest.raises(UsageError, match=r"c: agents.1.model.dtype: float64 does not go with model.dtype float32"):
        check_config(mixed | {"model": mixed["model"] | {"dtype": "float32"}}, "c")


def test_neighbours_with_different_models_have_different_workers(mixed):
    assert check_config(mixed, "c").workers == [[0], [1], [2]]
    assert check_config(mixed | {"agents": mixed["agents"][::2] + mixed["agents"][1:2]}, "c").workers == [[0, 1], [2]]


def test_a_check_reads_the_own_models_too(mixed):
    checked = check_experiment(check_config(mixed, "c"), "c", CPU)
    (own,) = checked.own_models
    assert own.agents == [1]
    model = Qwen2ForCausalLM.from_pretrained(own.name)
    assert own.parameters == model.num_parameters()
    assert own.memory == 8 * own.parameters + sum(buffer.nbytes for buffer in model.buffers())
    missing = [mixed["agents"][0], mixed["agents"][1] | {"model": {"name": "/gone", "dtype": "float64"}}]
    with pytest.raises(UsageError, match=r"^c: agents.1.model.name: '/gone' is not a folder"):
        check_experiment(check_config(mixed | {"agents": missing, "topology": {"graph": "ring"}}, "c"), "c", CPU)
