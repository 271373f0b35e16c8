"""Exported agents: files, model card, refusals, and equal outputs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlhf_marl
from rlhf_marl.errors import RlhfMarlError, UsageError
from rlhf_marl.hub.export_folder import MARKER
from rlhf_marl.runs.directory import RunDirectory
from tests.hub.test_push import environment

IDS = torch.arange(3, 40).unsqueeze(0)
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MARKER}


def texts(folder: Path) -> str:
    return "\n".join(
        path.read_text("utf-8") for path in folder.rglob("*") if path.suffix != ".safetensors" and path.is_file()
    )


@pytest.mark.parametrize("merge", [False, True])
def test_the_folder_is_complete_and_has_no_local_path(finished, tiny_model_folder, tmp_path, merge):
    assert rlhf_marl.export(finished, agent=1, to=tmp_path / "out", merge=merge) == str(tmp_path / "out")
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    model = {f"adapter/{name}" for name in adapter} | {"model.safetensors", "config.json", "generation_config.json"}
    assert names(tmp_path / "out") == TOKENIZER | {"README.md"} | (model if merge else adapter)
    written = texts(tmp_path / "out")
    for path in (tiny_model_folder, finished, tmp_path):
        assert str(path) not in written
        assert str(path.parent) not in written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing half-written is left beside it


def test_the_adapter_answers_as_the_trained_agent_does(finished, tiny_model_folder, tmp_path):
    for agent in (0, 1):
        rlhf_marl.export(finished, agent=agent, to=tmp_path / str(agent))
    loaded = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_folder), tmp_path / agent)
        for agent in ("0", "1")
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "1")
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    assert not torch.allclose(loaded[0](IDS).logits, loaded[1](IDS).logits)
    for agent, model in zip(rlhf_marl.load_run(finished).agents(), loaded, strict=True):
        tokens = model.generate(**chat, max_new_tokens=8, do_sample=False)[0, chat["input_ids"].shape[1] :]
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == agent.chat("hello", max_tokens=8)


def test_the_merged_model_has_the_logits_of_base_and_adapter(finished, tiny_model_folder, tmp_path):
    rlhf_marl.export(finished, agent=1, to=tmp_path / "out", merge=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    alone = base(IDS).logits
    together = PeftModel.from_pretrained(base, tmp_path / "out", subfolder="adapter")(IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # and adds no adapter a second time
    torch.testing.assert_close(merged(IDS).logits, together, rtol=1e-4, atol=1e-4)
    assert (alone - together).abs().max() > 0.01


def test_merged_weights_are_the_paper_formula(finished, tiny_model_folder, tmp_path):
    """W + (alpha / rank) B A, by hand for one layer."""
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out", merge=True)
    name = "model.layers.1.mlp.down_proj"
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    before, after = (
        load_file(f / "model.safetensors")[f"{name}.weight"] for f in (tiny_model_folder, tmp_path / "out")
    )
    torch.testing.assert_close(after, before + 4.0 / 2 * b @ a)


def test_the_adapter_of_a_local_base_names_no_hub_model(finished, tmp_path):
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    with pytest.raises((OSError, TypeError, ValueError, AttributeError)):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_card_is_the_hubs_and_says_what_was_measured(finished, tmp_path):
    rlhf_marl.export(finished, agent=1, to=tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "peft",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "multi-agent", "rlhf-marl", "lora"],
    }
    text = card.text
    assert "# Agent 1 (long)\n" in text
    assert "| 1 (this one) | long | Python function tests.conftest:length | for tests | none |" in text
    assert "3 iterations of 2 dialogues with 2 turns" in text
    assert "was not evaluated" in text
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward_scaled"] for row in rows if row["agent"] == 1]
    assert len(rewards) == 6
    assert f"| own reward (scaled) | {rewards[0]:.3f} | {rewards[-1]:.3f} | {rewards[-1] - rewards[0]:+.3f} |" in text
    assert "licence could not be determined: check the base model's own page" in text


def test_what_people_wrote_is_shown_and_does_nothing(finished, tmp_path):
    rlhf_marl.export(finished, agent=1, to=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert r"“hi \| \<b\>\*you\*\</b\>?”" in text
    assert "<b>" not in text.replace(r"\<b\>", "")


def test_what_models_wrote_stays_out(trained, tmp_path):
    file = trained / "dialogues.jsonl"
    for key in ("aggregate", "next_prompt", "text"):
        file.write_text(re.sub(rf'"{key}": "[^"]*"', f'"{key}": "IGNORE ALL"', file.read_text()))
    assert "IGNORE ALL" in file.read_text()
    rlhf_marl.export(trained, agent=0, to=tmp_path / "out", merge=True)
    assert "IGNORE ALL" not in texts(tmp_path / "out")


def test_an_earlier_export_is_replaced_unless_it_was_changed(finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    rlhf_marl.export(finished, agent=0, to=out, merge=True)  # an empty folder will do
    first = (out / "README.md").read_text()
    rlhf_marl.export(finished, agent=1, to=out)
    assert "config.json" not in names(out)
    assert (out / "README.md").read_text() != first
    for name in ("notes.txt", "README.md"):  # one that is new, one that was ours
        (out / name).write_text("mine")
        with pytest.raises(UsageError, match="has changed since it was exported"):
            rlhf_marl.export(finished, agent=0, to=out)
        assert (out / name).read_text() == "mine"
        (out / "notes.txt").unlink(missing_ok=True)


def test_a_merged_model_over_an_adapter_leaves_nothing_of_it(finished, tmp_path):
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out")
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out", merge=True)
    assert "adapter_config.json" not in names(tmp_path / "out")
    assert {"config.json", "adapter/adapter_config.json"} <= names(tmp_path / "out")


def test_other_folders_are_refused(finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for target in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex", finished):
        before = sorted(names(target)) if target.is_dir() else target.read_text()
        with pytest.raises(UsageError, match="already exists and is not an rlhf-marl export"):
            rlhf_marl.export(finished, agent=0, to=target)
        assert (sorted(names(target)) if target.is_dir() else target.read_text()) == before


def test_a_failed_export_leaves_what_was_there(trained, tmp_path):
    out = tmp_path / "out"
    rlhf_marl.export(trained, agent=0, to=out)
    before = texts(out)
    (trained / "evaluation.json").write_text('{"version": 3, "settings": 3}')
    with pytest.raises(
        UsageError, match=r"evaluation.json: agents: missing.*evaluate the run again, or move the file away"
    ):
        rlhf_marl.export(trained, agent=0, to=out)
    (trained / "evaluation.json").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(RlhfMarlError, match="cannot be written: "):
        rlhf_marl.export(trained, agent=0, to=tmp_path / "file" / "out")
    assert texts(out) == before


def test_a_run_without_adapters_says_how_to_get_them(run, trained, tmp_path):
    shutil.rmtree(trained / "adapters")
    shutil.rmtree(trained / "checkpoints" / "iteration_00003")  # as if it died in the third of three iterations
    code, _, errors = run("export", "trained", "--agent", "0", "--to", "out")
    assert code == 2
    assert errors == (
        "error: trained has no adapters yet (2 of 3 iterations are saved): `rlhf-marl train trained/config.yaml "
        "--run-dir trained --resume` finishes it; with --iterations 2 it writes those of its newest checkpoint\n"
    )
    command = re.search(r"`rlhf-marl (.*)`", errors).group(1).split()
    assert run(*command, "--iterations", "2")[0] == 0
    assert run("export", "trained", "--agent", "0", "--to", "out")[:2] == (0, "out\n")
    assert "2 iterations of 2 dialogues" in (tmp_path / "out" / "README.md").read_text()


def test_adapters_older_than_the_newest_checkpoint_are_refused(trained, tmp_path):
    """Like a finished run that was resumed for longer and killed."""
    checkpoint = RunDirectory(trained).load_checkpoint()
    assert checkpoint is not None
    tensors, values = checkpoint
    tensors["agent_0.adapter"][5] += 1.0
    RunDirectory(trained).save_checkpoint(values.pop("iteration") + 1, tensors, values)
    with pytest.raises(
        UsageError, match=r"has trained further since it wrote its adapters \(4 of 3 iterations are saved\)"
    ):
        rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    rlhf_marl.export(trained, agent=1, to=tmp_path / "out")  # whose numbers did not change


def test_a_finished_run_needs_no_checkpoints(trained, tmp_path):
    shutil.rmtree(trained / "checkpoints")
    rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    assert "3 iterations of 2 dialogues" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_of_another_version(trained, tmp_path):
    environment = json.loads((trained / "environment.json").read_text())
    environment["packages"]["rlhf-marl"] = "0.0.7"
    (trained / "environment.json").write_text(json.dumps(environment))
    content = yaml.safe_load((trained / "config.yaml").read_text()) | {"gossip": "old key"}
    (trained / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        UsageError, match=r"was written by rlhf-marl 0\.0\.7; this is version .*: export it with 0\.0\.7.*gossip"
    ):
        rlhf_marl.export(trained, agent=0, to=tmp_path / "out")


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_kind(file: Path) -> None:
    cards = json.loads(file.read_text())
    del cards[0]["kind"]
    file.write_text(json.dumps(cards))


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        ("reward_models.json", torn, "trained/reward_models.json: cannot be read: "),
        ("reward_models.json", without_kind, "trained/reward_models.json: 0: kind: missing; it is required"),
        ("reward_models.json", lambda f: f.write_text("{}"), "trained/reward_models.json: not a list of cards"),
        ("reward_models.json", lambda f: f.write_text("[]"), "trained/reward_models.json: 0 cards; config.yaml has 2"),
        (
            "adapters/agent_0/adapter_config.json",
            torn,
            "trained/adapters/agent_0/adapter_config.json: cannot be read: ",
        ),
        ("adapters/agent_0/adapter_config.json", lambda f: f.write_text("[]"), "trained/adapters/agent_0/adapter_con"),
        ("config.yaml", lambda f: f.write_text("model: ["), "trained/config.yaml: "),
    ],
)
def test_a_damaged_file_that_is_needed_is_one_line(run, trained, tmp_path, name, damage, line):
    damage(trained / name)
    code, _, errors = run("export", "trained", "--agent", "0", "--to", "out")
    assert code == 2
    assert errors.startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("environment.json", torn),
        ("environment.json", lambda f: f.write_text("[1]")),
        ("environment.json", lambda f: f.write_text('{"packages": ["torch"]}')),
        ("environment.json", Path.unlink),
        ("metrics.jsonl", lambda f: f.write_text(f.read_text().replace('"kl"', '"kullback"'))),
        ("metrics.jsonl", lambda f: f.write_text("\n".join(["", "{torn", "[1]", '{"agent": 1e999}', "3"]) + "\n")),
        ("metrics.jsonl", Path.unlink),
    ],
)
def test_a_damaged_file_that_is_not_needed_does_not_matter(trained, tmp_path, name, damage):
    damage(trained / name)
    rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert ("its training metrics cannot be read" in text) == (name == "metrics.jsonl")
    assert "3 iterations of 2 dialogues" in text


def test_a_damaged_line_does_not_hide_the_others(trained, tmp_path):
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (trained / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    assert "means over the first and the last fifth of\n5 updates" in (tmp_path / "out" / "README.md").read_text()


def test_a_torn_marker_is_a_changed_export(finished, tmp_path):
    rlhf_marl.export(finished, agent=0, to=tmp_path / "out")
    torn(tmp_path / "out" / MARKER)
    with pytest.raises(UsageError, match="has changed since it was exported"):
        rlhf_marl.export(finished, agent=0, to=tmp_path / "out")


def test_a_damaged_adapter_is_not_passed_on(trained, tmp_path):
    shutil.rmtree(trained / "checkpoints")
    file = trained / "adapters" / "agent_0" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: damaged"):
        rlhf_marl.export(trained, agent=0, to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--agent", "2"], "--agent: 2 given; trained has 2 agents: 0 (vowels), 1 (long)"),
        (["--agent", "-1"], "--agent: -1 given; trained has 2 agents"),
        (["--agent", "0", "--public"], "--public: only with --push"),
        (["--agent", "0", "--push", "me/x"], "--push: HF_HUB_OFFLINE is set, so nothing is sent"),
        (["--agent", "0", "--push", "x"], "--push: 'x' is not a repository name; give OWNER/NAME"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, trained, tmp_path, options, line):
    code, _, errors = run("export", "trained", "--to", "out", *options)
    assert code == 2
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run(run, tmp_path):
    code, _, errors = run("export", ".", "--agent", "0", "--to", "out")
    assert (code, errors) == (2, "error: export: '.' is not a run directory: it has no config.yaml\n")


EXPORT_TWICE = """
import sys
import rlhf_marl
from rlhf_marl.errors import UsageError
for name in ("me/agent", "me/refused"):
    try:
        print(rlhf_marl.export(sys.argv[1], agent=1, to="out", merge=True, push=name))
    except UsageError as error:
        print(error)
"""


def test_push_uploads_the_folder_and_keeps_it_when_refused(finished, tmp_path, fake_hub):
    settings = environment(fake_hub, tmp_path / "home")
    command = [sys.executable, "-c", EXPORT_TWICE, str(finished)]
    fake_hub.fails = [("me/refused.git/info/lfs/objects/batch", 403)]
    answer = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    first, second = answer.stdout.splitlines()
    assert first == f"{fake_hub.url}/me/agent"
    assert set(fake_hub.repositories["me/agent"]["files"]) == names(tmp_path / "out")
    assert second.startswith("--push: the token may not write to me/refused (403)")
    assert second.endswith("; the folder out is written")
    assert MARKER in {path.name for path in (tmp_path / "out").iterdir()}  # and was not uploaded
