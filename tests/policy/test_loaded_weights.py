"""Models whose files lack weights, or hold others: refused in one line wherever a model is loaded."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.loading import default_device, load_chat_model, load_model_of
from rlhf_marl.rewards.prototype import load_encoder
from rlhf_marl.rewards.registry import build_reward_model, check_card
from tests.conftest import TINY, tiny_llama, tiny_tokenizer
from tests.tables import table

BERT = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture
def chat(tmp_path):
    """A chat model without tied embeddings, as files."""
    return saved(tmp_path / "chat", tiny_llama())


def saved(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def rewrite(folder, without="\0", **more):
    file = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if without not in name}
    save_file(weights | more, file, metadata={"format": "pt"})
    return str(folder)


def classifier(folder, **options):
    torch.manual_seed(2)
    return saved(folder, LlamaForSequenceClassification(LlamaConfig(**TINY, num_hidden_layers=1, num_labels=1)))


def card(folder, **options):
    content = {"name": "x", "kind": "sequence_classifier", "model": str(folder), "input": "chat", "device": "cpu"}
    return check_card(content | options, "x.yaml")


def refused(load, message):
    with pytest.raises(UsageError, match=message) as caught:
        load()
    assert "\n" not in str(caught.value)


def as_base(folder):
    load_chat_model(folder, "c.yaml: model.name", default_device())


def as_judge(folder):
    content = {"name": "x", "kind": "judge", "model": folder, "grades": ["1", "2"]}
    build_reward_model(check_card(content, "x.yaml"))


def as_reward_model(folder):
    build_reward_model(card(folder))


def as_encoder(folder):
    load_encoder(folder, "card x: model")


def without_head(tmp_path):
    return rewrite(classifier(tmp_path / "rm"), without="score.")


def language_model(tmp_path):
    return str(saved(tmp_path / "lm", tiny_llama()))


def without_a_layer(tmp_path):
    return rewrite(saved(tmp_path / "cut", tiny_llama()), without="layers.1.mlp.up_proj")


def with_a_layer_more(tmp_path):
    folder = saved(tmp_path / "more", tiny_llama())
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1})
    )
    return str(folder)


def reward_model(tmp_path):
    return str(classifier(tmp_path / "rm"))


LACKS, HOLDS = (
    "its files lack weights of a Llama{}, which would be random: ",
    "its files hold weights that a Llama{} does not ",
)
CUT, LONG = "a chat model, a layer's weights missing", "a chat model with more layers than its config says"
CASES = {
    (CUT, "base"): (without_a_layer, as_base, LACKS.format("ForCausalLM") + "model.layers.1.mlp.up_proj.weight$"),
    (CUT, "judge"): (without_a_layer, as_judge, LACKS.format("ForCausalLM")),
    (CUT, "encoder"): (without_a_layer, as_encoder, LACKS.format("Model") + "layers.1.mlp.up_proj.weight"),
    (LONG, "base"): (with_a_layer_more, as_base, HOLDS.format("ForCausalLM") + "have: model.layers.1.* and 8 more"),
    (LONG, "encoder"): (with_a_layer_more, as_encoder, HOLDS.format("Model")),
    ("a reward model", "base"): (reward_model, as_base, LACKS.format("ForCausalLM") + "lm_head.weight"),
    ("a reward model without its head", "reward model"): (
        without_head,
        as_reward_model,
        LACKS.format("ForSequenceClassification") + "score.weight$",
    ),
    ("a chat model", "reward model"): (
        language_model,
        as_reward_model,
        LACKS.format("ForSequenceClassification") + "score.weight$",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case).replace(" ", "_"))
def test_models_that_did_not_load_whole_are_one_line(tmp_path, capfd, case):
    make, load, message = CASES[case]
    folder = make(tmp_path)
    capfd.readouterr()
    refused(lambda: load(folder), message)
    assert capfd.readouterr().err == ""


def test_the_page_lists_what_is_refused_and_what_works():
    rows = {(what, loaded): result for what, loaded, result in table("Models")}
    assert {key for key, result in rows.items() if result.startswith("refused")} == CASES.keys()
    assert len(rows) == len(CASES) + 6


def test_an_old_head_is_dropped_and_a_new_one_trained_where_the_recipe_says_so(tmp_path, chat):
    load = lambda: load_model_of(AutoModelForSequenceClassification, str(chat), "x", head="trained", num_labels=1)  # noqa: E731
    assert load().score.weight.shape == (1, 32)
    rewrite(chat, without="layers.0")
    refused(load, r"x: .*lack weights .*: model.layers.0")


def test_an_encoder_needs_neither_a_pooler_nor_the_head_of_its_pretraining(tmp_path):
    torch.manual_seed(0)
    folder = saved(tmp_path / "bert", BertForMaskedLM(BertConfig(**BERT)))
    names = load_file(folder / "model.safetensors").keys()
    assert any(name.startswith("cls.") for name in names)
    assert not any("pooler" in name for name in names)
    assert load_model_of(AutoModel, str(folder), "x", head="unused")
    refused(lambda: load_model_of(AutoModel, str(folder), "x"), "lack weights of a BertModel, .* pooler")
    trained = load_model_of(AutoModelForSequenceClassification, str(folder), "x", head="trained", num_labels=1)
    assert isinstance(trained, BertForSequenceClassification)


def test_buffers_that_old_files_hold_are_no_weights(chat):
    """They are computed from the config, as rotary frequencies are."""
    frequencies = {
        "model.rotary_emb.inv_freq": torch.zeros(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7]])
        before = load_model_of(AutoModelForCausalLM, str(chat), "x")(ids).logits
        assert torch.equal(load_model_of(AutoModelForCausalLM, rewrite(chat, **frequencies), "x")(ids).logits, before)


def test_tied_weights_may_be_in_the_files_once(tmp_path):
    torch.manual_seed(0)
    model = type(tiny_llama())(LlamaConfig(**TINY, num_hidden_layers=1, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_model_of(AutoModelForCausalLM, str(tmp_path), "x")


def test_a_head_of_another_size_is_one_line(tmp_path):
    folder = classifier(tmp_path / "rm")
    load = lambda: load_model_of(AutoModelForSequenceClassification, str(folder), "x", head="trained", num_labels=2)  # noqa: E731
    refused(load, "x: .* cannot be loaded: ")


def adapter(folder, base, **options):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False, **options)
    torch.manual_seed(3)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


def test_a_head_may_come_with_the_adapter(tmp_path, chat):
    """A plain base whose score head is in the adapter: PEFT's scores. Without the adapter the same base is refused."""
    base = AutoModelForSequenceClassification.from_pretrained(chat, num_labels=1, pad_token_id=0)
    reference = adapter(tmp_path / "adapter", base)
    model = build_reward_model(card(chat, adapter=str(tmp_path / "adapter")))
    ids = torch.tensor([model._inputs("hi", "you")["input_ids"]])
    with torch.inference_mode():
        expected = reference(ids).logits.item()
    assert model.score(["hi"], ["you"]) == [pytest.approx(expected, abs=1e-5)]
    refused(lambda: build_reward_model(card(chat)), "lack weights")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"a_field_of_tomorrow": 1}, "cannot be loaded: Unexpected keyword arguments"),
        ({"target_modules": ["k_proj"]}, "cannot be loaded: (Found missing adapter keys|Error)"),
        ({"target_modules": ["nope"]}, "cannot be loaded: "),
    ],
)
def test_an_adapter_that_does_not_fit_a_reward_model_is_one_line(tmp_path, damage, reason):
    folder = classifier(tmp_path / "rm")
    adapter(tmp_path / "adapter", AutoModelForSequenceClassification.from_pretrained(folder))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    refused(lambda: build_reward_model(card(folder, adapter=str(tmp_path / "adapter"))), f"card x: adapter: .*{reason}")


def test_a_reward_adapter_made_for_another_base_is_used_with_a_warning(tmp_path, caplog):
    folder = classifier(tmp_path / "rm")
    adapter(tmp_path / "adapter", AutoModelForSequenceClassification.from_pretrained(folder))
    load = lambda: build_reward_model(card(folder, adapter=str(tmp_path / "adapter")))  # noqa: E731
    load()
    assert caplog.text == ""
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "org/other"}))
    load()
    assert f"card x: adapter: the adapter was made for org/other, not for {folder}" in caplog.text


def test_adapter_weights_that_peft_would_leave_out_are_one_line(tmp_path):
    folder = classifier(tmp_path / "rm")
    adapter(tmp_path / "adapter", AutoModelForSequenceClassification.from_pretrained(folder))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 32)}, file)
    refused(
        lambda: build_reward_model(card(folder, adapter=str(tmp_path / "adapter"))),
        r"card x: adapter: .*: PEFT does not use model.layers.0.mlp.up_proj.lora_A.weight of its weights",
    )
