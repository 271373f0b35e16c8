"""The stacked adapters against PEFT itself: same forward, same gradients, same files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedModel,
)

from rlhf_marl.errors import UsageError
from rlhf_marl.policy.adapters import StackedAdapters
from tests.conftest import TINY, tiny_llama

ROWS = torch.randint(0, 259, (6, 9), generator=torch.Generator().manual_seed(3))  # 3 agents x 2 rows


def stacked(seeds=(1, 2, 3), create=tiny_llama, **kwargs):
    model = create()
    options = {"rank": 2, "alpha": 6.0, "targets": "all-linear", "where": "c.yaml"} | kwargs
    return model, StackedAdapters(model, list(seeds), **options)


def tiny_gpt2() -> GPT2LMHeadModel:
    """A model whose layers are `Conv1D`."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=128)).eval()


def tiny_deepseek() -> DeepseekV3ForCausalLM:
    """A dense layer and one with experts, of which all tokens read one; PEFT takes both layers' names for experts'."""
    torch.manual_seed(0)
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **TINY | {"num_key_value_heads": 4, "num_hidden_layers": 2, "first_k_dense_replace": 1},
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    ).eval()


def randomise(adapters: StackedAdapters) -> None:
    adapters.parameters.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(7))


def test_fresh_adapters_leave_the_base_unchanged_and_off_means_off():
    model, adapters = stacked()
    base = tiny_llama()(ROWS).logits
    with adapters.use(slice(0, 3)):
        torch.testing.assert_close(model(ROWS).logits, base)
    randomise(adapters)
    torch.testing.assert_close(model(ROWS).logits, base)
    with adapters.use(slice(0, 3)):
        assert (model(ROWS).logits - base).abs().max() > 0.1


def test_hooks_of_the_base_layers_run_on_and_off():
    """Where a model is spread over devices, hooks on its layers move the activations."""
    model, adapters = stacked()
    layer, calls = model.get_submodule("model.layers.0.self_attn.q_proj").base, []
    layer.register_forward_hook(lambda *_: calls.append(1))
    for agents in (None, slice(None)):
        with torch.inference_mode(), adapters.use(agents):
            model(ROWS)
    assert len(calls) == 2


@pytest.mark.parametrize("create", [tiny_llama, tiny_gpt2])
def test_forward_and_gradients_equal_peft(tmp_path: Path, create: Callable[[], PreTrainedModel]):
    """Each agent's rows, through PEFT's own layers loaded from our files: same logits, same gradients."""
    model, adapters = stacked(create=create)
    randomise(adapters)
    weights = torch.randn(6, 9, 259, generator=torch.Generator().manual_seed(5))
    with adapters.use(slice(0, 3)):
        logits = model(ROWS).logits
        adapters.backward((logits * weights).sum())
    for agent in range(3):
        adapters.save(agent, tmp_path / str(agent), "base")
        rows = slice(2 * agent, 2 * agent + 2)
        peft = PeftModel.from_pretrained(create(), str(tmp_path / str(agent)), is_trainable=True)
        reference = peft(ROWS[rows]).logits
        torch.testing.assert_close(logits[rows], reference, atol=1e-4, rtol=1e-4)
        (reference * weights[rows]).sum().backward()
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                layer, _, matrix = name.removeprefix("base_model.model.").partition(".lora_")
                ours = getattr(model.get_submodule(layer), matrix[0].lower()).grad[agent].T
                torch.testing.assert_close(ours, parameter.grad, atol=1e-3, rtol=1e-3)


def test_flat_gradient_is_the_layers_gradient():
    model, adapters = stacked()
    randomise(adapters)
    with adapters.use(slice(0, 3)):
        adapters.backward(model(ROWS).logits.square().sum())
    total = sum(p.grad[1].square().sum() for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(adapters.parameters.grad[1].square().sum(), total)


def test_an_agent_subset_uses_its_own_adapters():
    model, adapters = stacked()
    randomise(adapters)
    with adapters.use(slice(0, 3)):
        everyone = model(ROWS).logits
    with adapters.use(slice(1, 3)):
        torch.testing.assert_close(model(ROWS[2:]).logits, everyone[2:])


def test_adding_an_agent_does_not_change_the_others_start():
    _, two = stacked(seeds=(1, 2))
    _, three = stacked(seeds=(1, 2, 3))
    assert torch.equal(two.parameters, three.parameters[:2])
    assert not torch.equal(three.parameters[1], three.parameters[2])


def test_initialisation_has_pefts_scale():
    model, _ = stacked(rank=8)
    reference = get_peft_model(tiny_llama(), LoraConfig(r=8, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    theirs = next(p for n, p in reference.named_parameters() if "lora_A" in n)
    ours = model.model.layers[0].self_attn.q_proj.a[0]
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.2)
    assert ours.abs().max() <= theirs.shape[1] ** -0.5


def test_save_and_load_round_trip_through_peft(tmp_path: Path):
    _, adapters = stacked()
    randomise(adapters)
    adapters.save(1, tmp_path / "ours", "base")
    peft = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "ours"))
    peft.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)  # "base" is on no hub
    _, fresh = stacked()
    fresh.load(2, tmp_path / "theirs", "c.yaml")
    assert torch.equal(fresh.parameters[2], adapters.parameters[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 3}, "r: 2 given; lora.rank is 3"),
        ({"alpha": 1.0}, "lora_alpha: 6.0 given; lora.alpha is 1.0"),
        ({"targets": ["q_proj"]}, "other layers"),
    ],
)
def test_loading_another_kind_of_adapter_is_refused(tmp_path: Path, change: dict, message: str):
    _, adapters = stacked()
    adapters.save(0, tmp_path, "base")
    _, other = stacked(**change)
    with pytest.raises(UsageError, match=message):
        other.load(0, tmp_path, "c.yaml: agents.0.adapter")


def test_loading_from_an_empty_folder_is_refused(tmp_path: Path):
    _, adapters = stacked()
    with pytest.raises(UsageError, match=r"adapter_config.json is missing"):
        adapters.load(0, tmp_path, "c.yaml: agents.0.adapter")


def test_an_adapter_that_peft_made_of_gpt2s_layers_is_read(tmp_path: Path):
    config = LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", fan_in_fan_out=True, init_lora_weights=False)
    peft = get_peft_model(tiny_gpt2(), config).eval()
    peft.save_pretrained(tmp_path)
    model, adapters = stacked(create=tiny_gpt2)
    adapters.load(1, tmp_path, "c.yaml: agents.1.adapter")
    with adapters.use(slice(1, 2)):
        torch.testing.assert_close(model(ROWS).logits, peft(ROWS).logits, atol=1e-4, rtol=1e-4)


def test_layers_whose_names_peft_takes_for_experts_are_left_out_and_said(tmp_path: Path, caplog):
    model, adapters = stacked(create=tiny_deepseek)
    randomise(adapters)
    adapted = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]
    assert sorted({name.rpartition(".")[2] for name in adapters._layers}) == adapted
    (line,) = caplog.messages
    assert line == (
        f"c.yaml: lora.targets: all-linear adapts {', '.join(adapted)}; not the experts, whose weights are no linear "
        "layers; nor down_proj, gate_proj, up_proj, whose names PEFT takes for the experts'"
    )
    adapters.save(1, tmp_path, "base")
    peft = PeftModel.from_pretrained(tiny_deepseek(), str(tmp_path)).eval()
    with adapters.use(slice(1, 2)):
        torch.testing.assert_close(model(ROWS).logits, peft(ROWS).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        UsageError, match=r"lora.targets: 'gate_proj' is a name that PEFT takes for the experts'; choose from kv_a"
    ):
        stacked(create=tiny_deepseek, targets=["gate_proj"])


def test_layers_that_compute_something_else_are_left_out():
    """Llama 4's router is a subclass of nn.Linear that returns two tensors."""
    config = Llama4TextConfig(
        **TINY | {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 4, "num_hidden_layers": 2}
    )
    adapters = StackedAdapters(Llama4ForCausalLM(config), [1], rank=2, alpha=1.0, targets="all-linear", where="c.yaml")
    assert "router" not in {name.rpartition(".")[2] for name in adapters._layers}
    falcon = FalconConfig(vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    _, adapters = stacked(create=lambda: FalconForCausalLM(falcon))  # its own class of linear layers is adapted
    assert {name.rpartition(".")[2] for name in adapters._layers} == {
        *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    }
    with pytest.raises(UsageError, match="'router' is not a linear layer"):
        stacked(create=lambda: Llama4ForCausalLM(config), targets=["router"])


def test_unknown_target_lists_the_layers():
    with pytest.raises(UsageError, match=r"'qq' is not a linear layer; choose from down_proj, gate_proj"):
        stacked(targets=["qq"])


def nan(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file(weights | {first: weights[first] * float("nan")}, file)


def narrow(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file(weights | {first: weights[first][:, :3].contiguous()}, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is damaged: Expecting property name"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 10**5), "is damaged: maximum recursion"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is damaged: 'list' object has no"),
        (lambda folder: (folder / "adapter_model.safetensors").write_text("x"), "is damaged: Error while deserializ"),
        (nan, "holds numbers that are not finite"),
        (narrow, r"has shape \(2, 3\); the model needs \(2, "),
    ],
    ids=["json", "deep", "list", "weights", "nan", "narrow"],
)
def test_a_damaged_adapter_is_one_line_and_changes_nothing(tmp_path: Path, damage, message):
    _, adapters = stacked()
    adapters.save(0, tmp_path, "base")
    damage(tmp_path)
    randomise(adapters)
    before = adapters.parameters.clone()
    with pytest.raises(UsageError, match=f"c.yaml: agents.0.adapter: .*{message}") as caught:
        adapters.load(0, tmp_path, "c.yaml: agents.0.adapter")
    assert "\n" not in str(caught.value)
    assert torch.equal(adapters.parameters, before)
