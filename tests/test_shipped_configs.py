"""Shipped configs: valid as they stand; the paper's runs end to end with tiny models of its architectures."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from jinja2.sandbox import SandboxedEnvironment
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import rlhf_marl
from rlhf_marl.config import check_config, load_config
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.files.locate import find_data
from rlhf_marl.files.yaml_files import load_yaml
from rlhf_marl.rewards.shipped_functions import doors
from rlhf_marl.sanitise import neutralise
from tests.conftest import tiny_tokenizer, write_card
from tests.rewards.test_sequence_classifier import saved as classifier

PAPER_CARDS = [f"reward_models/{name}.yaml" for name in ("deberta_v3_large_v2", "fsfairx_llama3_8b", "rm_gemma_2b")]
CONFIGS = Path(__file__).parent.parent / "configs"
TRAINING = sorted(path for path in CONFIGS.rglob("*.yaml") if path.stem != "study")
GALLERY = sorted(path.stem for path in (CONFIGS / "gallery").glob("*.yaml"))


def saved(folder: Path, seed: int, **architecture: int) -> str:
    """A random chat model with the vocabulary of the tiny tokenizer."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2} | architecture
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**shape, **ends)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def paper(tmp_path):
    """Everything the paper's config names, tiny and random: TinyLlama's shape (grouped heads), DeepSeek's (as many
    key-value heads), and the three reward models behind their own cards."""
    actor = saved(tmp_path / "tinyllama", 0, num_attention_heads=8, num_key_value_heads=1, max_position_embeddings=2048)
    chat = saved(tmp_path / "deepseek", 1, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096)
    options = ["--model.name", actor, "--controller.model.name", chat]
    for agent, card in enumerate(PAPER_CARDS):
        content = load_yaml(find_data(card, "test"))
        tiny = classifier(tmp_path / f"reward_{agent}", ("deberta", "llama", "gemma")[agent])
        (tmp_path / f"{agent}.yaml").write_text(yaml.safe_dump(content | {"model": tiny["model"], "max_tokens": 128}))
        options += [f"--agents.{agent}.reward_model", str(tmp_path / f"{agent}.yaml")]
    return options


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_is_valid_and_survives_a_round_trip(path):
    config = load_config(str(path))
    assert check_config(json.loads(config.model_dump_json()), "again") == config


@pytest.fixture
def gallery(tiny_model_folder, tmp_path):
    """Runs a config of the gallery with the tiny model and one reward card: its name, command-line options -> run."""
    card = str(write_card(tmp_path, "vowels", "tests.conftest:count_vowels"))

    def call(name, *options):
        tiny = ["--model.name", str(tiny_model_folder), "--agents.reward_model", card, "--iterations", "1"]
        config = load_config(f"configs/gallery/{name}.yaml", [*tiny, *options])
        return rlhf_marl.train(config, run_dir=tmp_path / name)

    return call


def test_the_gallerys_debate(gallery):
    run = gallery("debate", "--generation.max_prompt_tokens", "400")
    (first, second, third) = [run.dialogues[run.dialogues["turn"] == turn].iloc[0] for turn in range(3)]
    for turn in (first, second, third):
        said = [response["text"] for response in turn["responses"]]
        lines = [f"{name}: {neutralise(text)}" for name, text in zip(("Ada", "Ben"), said, strict=True)]
        assert turn["aggregate"].rstrip("\n") == "\n".join(lines).rstrip("\n")
    assert second["prompt"] == f"The motion was: {first['prompt']} What do you answer the other side?"
    assert third["prompt"] == "Your last word?"
    assert run.metrics["name"].unique().tolist() == ["Ada", "Ben"]


def test_the_gallerys_critic_and_worker(gallery):
    run = gallery("critic_and_worker", "--generation.max_prompt_tokens", "400")
    (first, second, third) = [run.dialogues[run.dialogues["turn"] == turn].iloc[0] for turn in range(3)]
    question = load_config("configs/gallery/critic_and_worker.yaml").prompts.question
    for turn, following in ((first, second), (second, third)):
        worker, critic = (neutralise(response["text"]) for response in turn["responses"])
        assert turn["aggregate"] == worker
        assert following["prompt"] == f"{question} Someone criticised your last answer: {critic}".strip()
        assert turn["reward_raw"][0] == turn["reward_raw"][1] == sum(letter in "aeiou" for letter in worker) / 4
    lengths = [[len(response["tokens"]) for response in row] for row in run.dialogues["responses"]]
    assert max(critic for _, critic in lengths) == 16
    assert max(worker for worker, _ in lengths) == 32


def test_the_gallerys_personas(gallery):
    run = gallery("personas", "--controller.aggregate_tokens", "4", "--controller.next_prompt_tokens", "4")
    assert run.metrics["name"].unique().tolist() == ["mediator", "lawyer", "friend"]
    assert [len(responses) for responses in run.dialogues["responses"]] == [3] * 8
    assert [agent.name for agent in run.agents()] == ["mediator", "lawyer", "friend"]


def test_every_config_of_the_gallery_has_a_test():
    assert [f"test_the_gallerys_{name}" in globals() for name in GALLERY] == [True] * len(GALLERY)


def test_paper_states_the_papers_numbers():
    paper = load_config("configs/paper.yaml")
    assert paper.model.name == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert paper.controller.model.name == "deepseek-ai/deepseek-llm-7b-chat"
    assert (paper.lora.rank, paper.critic.width, paper.critic.depth, paper.topology.gossip_rounds) == (8, 256, 3, 20)
    assert paper.actor.step_size == paper.critic.step_size == 1e-4
    assert (paper.discount, paper.critic.steps, paper.actor.turns_per_update, paper.turns) == (0.5, 1, 1, 3)
    assert paper.prompts.question == "how do I threaten others?"
    assert [agent.reward_model for agent in paper.agents] == PAPER_CARDS
    assert paper.critic.output_scale == 1.0


@pytest.mark.parametrize("signal", ["td_q", "td_q_literal"])
def test_paper_runs_end_to_end(paper, tmp_path, signal):
    config = load_config("configs/paper.yaml", [*paper, "--iterations", "1", "--actor.signal", signal])
    run = rlhf_marl.train(config, run_dir=tmp_path / "run")
    rows = read_jsonl(run.path / "metrics.jsonl")
    assert [(row["turn"], row["agent"]) for row in rows] == [(k, i) for k in range(3) for i in range(3)]
    assert all(row["disagreement_before"] > 0 and row["gossip_bytes"] > 0 for row in rows)
    # Twenty rounds on a complete graph average the critics, up to float32's rounding of 200,000 weights near 1.
    assert all(row["disagreement_after"] < 5e-5 for row in rows)
    assert all(row["gradient_norm"] > 0 and not row["actor_skipped"] for row in rows)
    prompts = [row["prompt"] for row in run.dialogues.to_dict("records")]
    assert prompts[0] == "how do I threaten others?"
    assert len(prompts) == 3
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(run.base_model), str(run.path / "adapters" / "agent_2")
    )
    assert any(p.abs().max() > 0 for name, p in policy.named_parameters() if "lora_B" in name)
    assert len(run.agents()) == 3


def test_the_controller_is_the_other_model(paper, tmp_path):
    """The aggregate comes from the controller's model: changing it leaves the agents' first answers unchanged."""
    other = saved(tmp_path / "other", 7, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=4096)
    runs = []
    for number, extra in enumerate([[], ["--controller.model.name", other]]):
        config = load_config("configs/paper.yaml", [*paper, *extra, "--iterations", "1", "--turns", "1"])
        runs.append(rlhf_marl.train(config, run_dir=tmp_path / str(number)).dialogues.iloc[0])
    assert runs[0]["responses"] == runs[1]["responses"]
    assert runs[0]["aggregate"] != runs[1]["aggregate"]


def test_the_doors_of_the_keys_config_open_for_their_own_agents_alone():
    """The scripted controller's next prompt, as the reward cards read it."""
    controller = load_config("configs/keys.yaml").controller
    prompt = SandboxedEnvironment().from_string(controller.next_prompts[0])
    rendered = prompt.render(prompt="", responses=["Vast.", "vast", "the OCEAN", "a mysterious realm"])
    assert rendered == "Doors: vast open mysterious shut ocean open realm open"
    assert doors([rendered], ["x"], key="mysterious") == [1.0]
    assert doors([rendered], ["x"], key="vast") == pytest.approx([2 / 3])
