"""Complete runs with a tiny model: written files, repetition, resume, refusals."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rlhf_marl
from rlhf_marl.config import check_config
from rlhf_marl.config.schema import ValidationConfig
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.errors import RlhfMarlError, RunStopped, UsageError
from rlhf_marl.evaluation.validation import Prepared
from rlhf_marl.files.jsonl import read_jsonl
from rlhf_marl.policy.loading import default_device
from rlhf_marl.policy.log_probabilities import evaluate_responses
from rlhf_marl.runs.validations import Validated
from rlhf_marl.training.build import Experiment, build, build_agents
from rlhf_marl.training.health import warnings_of
from rlhf_marl.training.loop import Done, first_prompts, with_successors
from rlhf_marl.training.team import LocalTeam
from tests.conftest import count_vowels, write_card


def turns_of(experiment: Experiment) -> Iterator[Turn]:
    return map(experiment.team.score, experiment.player.play(first_prompts(experiment, 0)))


TIMES = {"seconds", "stage_seconds", "tokens_per_second"}


def metrics(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(path / "metrics.jsonl")]


def train(content: dict, path: Path, **options) -> rlhf_marl.Run:
    return rlhf_marl.train(content, run_dir=path, **options)


def test_a_run_leaves_what_the_contract_names(tiny_content, tmp_path):
    run = train(tiny_content, tmp_path / "run")
    rows = read_jsonl(run.path / "metrics.jsonl")
    assert [(r["update"], r["iteration"], r["turn"], r["agent"]) for r in rows] == [
        (2 * i + k, i, k, a) for i in range(2) for k in range(2) for a in range(2)
    ]
    for key in (
        "reward_raw", "reward_scaled", "td_error", "actor_signal", "critic_value", "disagreement_before",
        "disagreement_after", "entropy", "kl", "response_tokens", "truncated", "gradient_norm", "tokens_per_second",
        "gossip_bytes",
    ):  # fmt: skip
        assert all(isinstance(row[key], int | float) for row in rows), key
    assert [row["warnings"] for row in rows] == [[kind for kind, _ in warnings_of(row, run.config)] for row in rows]
    assert any(row["warnings"] for row in rows)
    dialogues = read_jsonl(run.path / "dialogues.jsonl")
    assert [(d["iteration"], d["turn"], d["dialogue"]) for d in dialogues] == [
        (i, k, 2 * i + b) for i in range(2) for k in range(2) for b in range(2)
    ]
    assert dialogues[0]["prompt"] == "hi?"
    assert dialogues[0]["next_prompt"] == dialogues[2]["prompt"]
    assert dialogues[2]["next_prompt"] is None
    assert dialogues[0]["reward_raw"][1] == len(dialogues[0]["responses"][1]["text"])
    assert json.loads((run.path / "environment.json").read_text())["seed"] == 0
    assert set(load_file(run.path / "critics.safetensors")) == {"agent_0", "agent_1"}
    assert run.config == check_config(tiny_content, "tiny")
    assert len(run.metrics) == 8
    assert len(run.dialogues) == 8


def test_so_many_dialogues_start_with_the_same_question_and_are_compared(quick_content, tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("hi?", "who?", "where?")))
    prompts = {"source": "jsonl", "path": str(file)}
    content = quick_content | {"dialogues": 4, "dialogues_per_question": 2, "iterations": 3, "prompts": prompts}
    asked = [row["question"] for row in read_jsonl(train(content, tmp_path / "run").path / "dialogues.jsonl")]
    assert asked[::2] == asked[1::2]
    assert sorted(asked[:6:2]) == sorted(asked[6::2]) == [0, 1, 2]  # two rounds through all questions
    configs = [check_config(content | {"dialogues_per_question": n}, "c") for n in (1, 2)]
    assert [build(c, "c", torch.device("cpu")).team.learner.compared for c in configs] == [None, 2]


def test_same_seed_same_run_other_seed_other_run(tiny_content, tmp_path):
    first, again = train(tiny_content, tmp_path / "a"), train(tiny_content, tmp_path / "b")
    other = train(tiny_content | {"seed": 1}, tmp_path / "c")
    assert metrics(first.path) == metrics(again.path)
    assert (first.path / "dialogues.jsonl").read_bytes() == (again.path / "dialogues.jsonl").read_bytes()
    assert metrics(first.path) != metrics(other.path)


@pytest.mark.parametrize("signal", ["td_v", "td_q"])
def test_resumed_run_equals_the_uninterrupted_one(tiny_content, tmp_path, signal):
    content = tiny_content | {"iterations": 3, "actor": {"signal": signal, "step_size": 0.01}}
    whole = train(content, tmp_path / "whole")
    train(content | {"iterations": 1}, tmp_path / "parts")
    torn = tmp_path / "parts" / "metrics.jsonl"
    torn.write_text(torn.read_text() + '{"update": 2, "iterat')  # killed in the middle of a line
    resumed = train(content, tmp_path / "parts", resume=True)
    assert metrics(whole.path) == metrics(resumed.path)
    assert (whole.path / "dialogues.jsonl").read_bytes() == (resumed.path / "dialogues.jsonl").read_bytes()
    for file in ("critics.safetensors", "adapters/agent_1/adapter_model.safetensors"):
        ours, theirs = load_file(whole.path / file), load_file(resumed.path / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_masked_run_is_resumed_exactly(quick_content, tmp_path):
    """After three rounds there is something left of the masks, and the sixth update has the same ones."""
    topology = {"graph": "ring", "laziness": 0.2, "gossip_rounds": 4, "masked": True}
    agents = [quick_content["agents"][0]] * 3
    content = quick_content | {"agents": agents, "iterations": 3, "topology": topology}
    whole = train(content, tmp_path / "whole")
    train(content | {"iterations": 2}, tmp_path / "parts")
    resumed = train(content, tmp_path / "parts", resume=True)
    assert metrics(whole.path) == metrics(resumed.path)
    plain = train(content | {"topology": topology | {"masked": False}}, tmp_path / "plain")
    assert whole.metrics["disagreement_after"].min() > 3 * plain.metrics["disagreement_after"].max()
    assert whole.metrics["gossip_bytes"].tolist() == plain.metrics["gossip_bytes"].tolist()


RESTRAINT = {"kl_coefficient": 0.01, "kl_target": 0.1, "entropy_band": [4.9, 4.95], "entropy_step_size": 0.5}


def test_adapted_coefficients_are_resumed_exactly(quick_content, tmp_path):
    content = quick_content | {"iterations": 4, "actor": RESTRAINT | {"step_size": 0.05}}
    whole = train(content, tmp_path / "whole")
    train(content | {"iterations": 2}, tmp_path / "parts")
    resumed = train(content, tmp_path / "parts", resume=True)
    assert metrics(whole.path) == metrics(resumed.path)
    assert whole.metrics["kl_coefficient"].tolist()[:4] == pytest.approx([0.01, 0.01, 0.008, 0.008])
    assert whole.metrics["entropy_coefficient"].abs().max() > 0


def test_kl_stays_nearer_to_its_target_and_entropy_to_its_band(quick_content, tmp_path):
    """Rewarded for vowels alone, so that KL rises and entropy falls as long as nothing restrains them."""
    agents = [quick_content["agents"][0]] * 2
    content = quick_content | {"agents": agents, "iterations": 40, "dialogues": 8, "checkpoint_every": 100}
    found = {}
    for name, actor in {
        "free": {"kl_coefficient": 0.01},
        "target": {"kl_coefficient": 0.01, "kl_target": 0.1},
        "band": {"kl_coefficient": 0.01, "entropy_band": [4.5, 6.0], "entropy_step_size": 0.1},
    }.items():
        run = train(content | {"actor": actor | {"step_size": 0.05}}, tmp_path / name)
        rows = run.metrics[run.metrics["iteration"] >= 20]
        kl = rows["kl"] / rows["response_tokens"]
        found[name] = ((kl - 0.1).abs().mean(), (4.5 - rows["entropy"]).clip(lower=0).mean())
    assert found["target"][0] < found["free"][0] / 2
    assert found["band"][1] < found["free"][1] / 2


def test_resume_refuses_another_config_and_names_the_difference(tiny_content, tmp_path):
    train(tiny_content, tmp_path / "run")
    changed = tiny_content | {"actor": {"step_size": 0.5}}
    with pytest.raises(UsageError, match=r"actor.step_size = 0.001, now it is 0.5"):
        train(changed, tmp_path / "run", resume=True)


def test_a_run_from_before_a_key_existed_is_resumed_with_its_default(tiny_content, tmp_path):
    """Runs of earlier versions have no section `runtime`, neither in their config nor in their checkpoints."""
    path = tmp_path / "run"
    whole = train(tiny_content | {"iterations": 3}, tmp_path / "whole")
    train(tiny_content, path)
    saved = yaml.safe_load((path / "config.yaml").read_text())
    del saved["runtime"]
    (path / "config.yaml").write_text(yaml.safe_dump(saved))
    for file in path.glob("checkpoints/*/state.json"):
        values = json.loads(file.read_text())
        del values["config"]["runtime"]
        file.write_text(json.dumps(values))
        manifest = json.loads((file.parent / "manifest.json").read_text())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        manifest["state.json"] = {"bytes": file.stat().st_size, "sha256": digest}
        (file.parent / "manifest.json").write_text(json.dumps(manifest))
    resumed = train(tiny_content | {"iterations": 3}, path, resume=True)
    assert metrics(resumed.path) == metrics(whole.path)
    runtime = {"kind": "ray"}
    with pytest.raises(UsageError, match=r"was started with runtime.kind = 'local', now it is 'ray'; use a new run"):
        train(tiny_content | {"runtime": runtime}, path, resume=True)


def test_an_existing_run_is_not_overwritten(tiny_content, tmp_path):
    train(tiny_content, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"already exists; add --resume"):
        train(tiny_content, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_saved_adapters_load_with_plain_peft_and_give_the_same_log_probabilities(tiny_content, tmp_path):
    run = train(tiny_content | {"actor": {"step_size": 0.05}}, tmp_path / "run")
    agents = build_agents(run.config, "c", torch.device("cpu"))
    state, response = [5, 6, 7, 8], [20, 21, 22]
    for agent in range(2):
        agents.adapters.load(agent, run.path / "adapters" / f"agent_{agent}", "test")
    ours = evaluate_responses(
        agents.chat_model.model, agents.adapters, [[state]] * 2, [[response], [response]], temperature=1.0, pad=0
    ).log_probability
    assert abs(ours[0, 0] - ours[1, 0]) > 1e-3
    for agent in range(2):
        base = AutoModelForCausalLM.from_pretrained(tiny_content["model"]["name"])
        peft = PeftModel.from_pretrained(base, str(run.path / "adapters" / f"agent_{agent}")).eval()
        logits = peft(torch.tensor([state + response])).logits[0, len(state) - 1 : -1].log_softmax(-1)
        expected = logits[torch.arange(3), torch.tensor(response)].sum()
        torch.testing.assert_close(ours[agent, 0], expected, atol=1e-4, rtol=1e-4)


def test_adding_an_agent_does_not_change_the_others_first_responses(tiny_content, tmp_path):
    def first_turn(content):
        return next(turns_of(build(check_config(content, "c"), "c", torch.device("cpu")))).tokens

    three = tiny_content | {"agents": [*tiny_content["agents"], tiny_content["agents"][0]]}
    assert first_turn(three)[:2] == first_turn(tiny_content)


def test_transitions_of_v_and_q_critics(tiny_content):
    """V: as soon as the turn ends. Q: a turn later, with the next responses; the last turn's discount is 0."""
    for signal, restart in (("td_v", False), ("td_q", False), ("td_q", True)):
        content = tiny_content | {"actor": {"signal": signal}, "terminal": "restart" if restart else "zero", "turns": 3}
        experiment = build(check_config(content, "c"), "c", torch.device("cpu"))
        turns = list(with_successors(turns_of(experiment), experiment))
        assert [turn.number for turn in turns] == [0, 1, 2]
        assert [turn.discount for turn in turns] == [0.5, 0.5, 0.5 if restart else 0.0]
        for now, following in pairwise([*turns, turns[0]]):
            assert now.next_states == following.states
            assert now.next_samples == (following.samples if signal == "td_q" else None)


def test_every_turn_trains_on_the_sampled_tokens(tiny_content, tmp_path):
    """Token in, token out: with a step of size zero, the trained log-probability is that of sampling."""
    run = train(tiny_content | {"actor": {"step_size": 1e-12}}, tmp_path / "run")
    experiment = build(run.config, "c", default_device())
    turn = next(turns_of(experiment))
    learner = experiment.team.learner
    statistics = evaluate_responses(
        learner.chat_model.model,
        learner.adapters,
        turn.observations,
        turn.tokens,
        temperature=1.0,
        pad=2,
    )
    first = [row["log_probability"] for row in metrics(run.path)[:2]]
    assert first == pytest.approx(statistics.log_probability.mean(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"actor": {"signal": "td_q", "credit": "consensus", "optimizer": "normalised", "step_size": 0.01}},
        {"actor": {"signal": "q_value", "credit": "consensus"}},
        {"actor": {"turns_per_update": 2}, "critic": {"width": 8, "steps": 3, "optimizer": "sgd", "start": "restart"}},
        {"topology": {"graph": "explicit", "edges": [[0, 1]], "matrix": "given", "weights": [[0.6, 0.4], [0.4, 0.6]]}},
        {"controller": {"kind": "scripted", "next_prompts": ["And {{ prompt }}"]}, "dialogues": 1},
        {"terminal": "restart", "actor": {"kl_coefficient": 0.5, "baseline": "none"}},
        {"reward": {"of": "team"}, "cooperation": "centralised", "actor": {"credit": "consensus"}},
        {"reward": {"of": "both"}, "cooperation": "minimum", "actor": {"credit": "consensus"}},
        {"actor": {"signal": "return", "turns_per_update": 2}},
        {"cooperation": "independent"},
        {"cooperation": "placebo"},
    ],
)
def test_each_choice_of_the_config_trains(tiny_content, tmp_path, change):
    run = train(tiny_content | {"iterations": 1} | change, tmp_path / "run")
    updates = 2 // run.config.actor.turns_per_update
    assert len(run.metrics) == updates * 2
    assert run.metrics.notna().all().all()


def test_one_agent_trains(tiny_content, tmp_path):
    content = tiny_content | {"agents": tiny_content["agents"][1:]}
    content["actor"] = {"baseline": "none"}  # whose answers may all be equally long
    run = train(content, tmp_path / "run")
    rows = read_jsonl(run.path / "metrics.jsonl")
    assert [(row["update"], row["agent"]) for row in rows] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert all(row["gossip_bytes"] == row["disagreement_before"] == row["disagreement_after"] == 0 for row in rows)
    assert all(row["gradient_norm"] > 0 for row in rows)


def zero(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(responses)


def ten_a_vowel(prompts: list[str], responses: list[str]) -> list[float]:
    return [40 * score for score in count_vowels(prompts, responses)]


@pytest.mark.parametrize("optimizer", ["scaled_adam", "adam"])
def test_an_agent_without_reward_stays_where_it_is(tiny_content, tmp_path, optimizer):
    """A placebo beside an agent that learns, told apart by the KL divergence to the base model; Adam moves both alike.

    The questions differ, so that the critic's values of the states do, and are noise in the placebo's signal.
    """
    cards = [write_card(tmp_path, f.__name__, f"{__name__}:{f.__name__}") for f in (ten_a_vowel, zero)]
    questions = ("hi?", "who are you?", "where is it?", "why")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    content = tiny_content | {
        "iterations": 15,
        "dialogues": 4,
        "agents": [{"reward_model": str(card)} for card in cards],
        "prompts": {"source": "jsonl", "path": str(tmp_path / "questions.jsonl")},
        "controller": {"kind": "scripted", "next_prompts": ["-"]},
        "actor": {"step_size": 0.03, "optimizer": optimizer, "kl_coefficient": 0.001},
        "lora": {"rank": 4, "alpha": 16.0},
    }
    metrics = train(content, tmp_path / "run").metrics
    learner, placebo = (metrics[metrics["agent"] == agent]["kl"].tail(4).mean() for agent in (0, 1))
    assert learner > 1
    assert (placebo < learner / 10) == (optimizer == "scaled_adam")


def test_without_any_reward_no_policy_moves(tiny_content, tmp_path):
    """Not even in the last bit, with a KL penalty too: the critics start at 0, so there is no signal."""
    card = str(write_card(tmp_path, "zero", f"{__name__}:zero"))
    content = tiny_content | {"agents": [{"reward_model": card}] * 2, "actor": {"kl_coefficient": 0.1}}
    metrics = train(content, tmp_path / "run").metrics
    assert metrics["actor_signal"].abs().max() == 0.0
    assert metrics["kl"].abs().max() < 1e-5


def test_reward_rises(tiny_content, tmp_path):
    """More vowels, from a model that writes random bytes, within seconds."""
    content = tiny_content | {
        "iterations": 25,
        "dialogues": 8,
        "turns": 1,
        "agents": tiny_content["agents"][:1] * 2,
        "controller": {"kind": "scripted", "next_prompts": ["-"]},
        "actor": {"step_size": 0.03},
        "lora": {"rank": 4, "alpha": 16.0},
    }
    run = train(content, tmp_path / "run")
    for _, rows in run.metrics.groupby("agent"):
        reward = rows["reward_raw"]
        assert reward.tail(5).mean() > reward.head(5).mean() + 0.1


@pytest.mark.parametrize(
    ("function", "symptom"),
    [("nan_score", "returned nan"), ("too_few", "returned 1 scores for 2"), ("fails", "raised ZeroDivisionError")],
)
def test_a_bad_score_stops_the_run_readable_and_resumable(tiny_content, tmp_path, monkeypatch, function, symptom):
    import tests.conftest as scorers

    bad = {
        "nan_score": lambda prompts, responses: [float("nan")] * len(responses),
        "too_few": lambda prompts, responses: [1.0],
        "fails": lambda prompts, responses: [1 / 0],
    }
    monkeypatch.setattr(scorers, "broken", scorers.count_vowels, raising=False)
    card = write_card(tmp_path, "broken", "tests.conftest:broken")
    content = tiny_content | {"agents": [tiny_content["agents"][0], {"reward_model": str(card)}]}
    whole = train(content, tmp_path / "whole")
    train(content | {"iterations": 1}, tmp_path / "run")
    monkeypatch.setattr(scorers, "broken", bad[function])
    with pytest.raises(RunStopped, match=rf"agent 1: reward model 'broken' {symptom}"):
        train(content, tmp_path / "run", resume=True)
    assert len(rlhf_marl.load_run(tmp_path / "run").metrics) == 4
    monkeypatch.setattr(scorers, "broken", scorers.count_vowels)
    assert metrics(train(content, tmp_path / "run", resume=True).path) == metrics(whole.path)


def test_non_finite_steps_never_reach_weights_and_stop_the_run_if_repeated(tiny_content, tmp_path):
    """Rewards near float32's maximum: all gradients overflow. Gossip spreads it to other signals, but to no weight."""
    card = write_card(tmp_path, "huge", "tests.training.test_loop:huge")
    content = tiny_content | {"agents": [{"reward_model": str(card)}] * 2, "iterations": 9, "stop_after_skipped": 3}
    with pytest.raises(RunStopped, match=r"iteration 2: the last 4 updates had steps that were not finite") as caught:
        train(content, tmp_path / "run")
    assert "\n" not in str(caught.value)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all(row["actor_skipped"] and row["critic_skipped"] for row in rows)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("iteration_00002")
    tensors = load_file(checkpoint / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def huge(prompts, responses):
    return [3e38 if i % 2 else -3e38 for i in range(len(responses))]


def test_trained_agents_chat(tiny_content, tmp_path):
    run = train(tiny_content, tmp_path / "run")
    agents = rlhf_marl.load_run(run.path).agents()
    assert [agent.index for agent in agents] == [0, 1]
    assert isinstance(agents[1].chat("hello", max_tokens=4), str)
    shutil.rmtree(run.path / "adapters")
    with pytest.raises(UsageError, match=r"adapter_config.json is missing"):
        rlhf_marl.load_run(run.path).agents()


def test_tensorboard_receives_the_metrics(tiny_content, tmp_path):
    run = train(tiny_content | {"tracker": "tensorboard"}, tmp_path / "run")
    assert any((run.path / "tracker").rglob("events*"))


def row(update, *, reward, actor_skipped=0, critic_skipped=0):
    flags = {"actor_skipped": actor_skipped, "critic_skipped": critic_skipped}
    return {"update": update, "reward_scaled": reward, "reward_raw": -reward, **flags}


def test_done_after_an_iteration_by_hand(tiny_config):
    rows = [row(4, reward=1.0), row(4, reward=2.0), row(5, reward=3.0), row(5, reward=6.0)]
    before = Done(iterations=2, updates=4, skipped=3, recent=(0.5,))
    assert before.after(rows, tiny_config) == Done(3, 6, 0, (0.5, 3.0))
    by_raw = tiny_config.model_copy(update={"best_metric": "reward_raw"})
    assert before.after(rows, by_raw) == Done(3, 6, 0, (0.5, -3.0))
    validation = ValidationConfig(judges=["j"])
    held_out = tiny_config.model_copy(update={"best_metric": "held_out", "validation": validation})
    assert Done(2, 4, 3, (), (0.5,)).after(rows, held_out) == Done(3, 6, 0, (), (0.5, 3.0))


def test_validations_come_before_every_second_iteration_and_at_the_end(tiny_config):
    config = tiny_config.model_copy(update={"iterations": 5, "validation": ValidationConfig(judges=["j"], every=2)})
    assert [i for i in range(6) if Done(i).awaits_validation(config)] == [0, 2, 4, 5]
    done, line = Done(4, rewards=(1.0, 4.0), validations=(Validated(2, 0.5, 1.0),)).validated({"team": 0.25}, config)
    assert done == Done(4, validations=(Validated(2, 0.5, 1.0), Validated(4, 0.25, 2.5)))
    assert line == {"iteration": 4, "team": 0.25, "training_reward": 2.5, "early_stop": None}
    assert not done.awaits_validation(config)
    assert Done().validated({"team": 0.5}, config)[1]["training_reward"] is None
    assert not Done(4).awaits_validation(tiny_config)


def test_skipped_updates_in_a_row_are_counted_over_iterations(tiny_config):
    """One agent's actor or critic is enough; a clean update ends the row."""
    bad = [
        row(0, reward=0.0, actor_skipped=1),
        row(0, reward=0.0),
        row(1, reward=0.0),
        row(1, reward=0.0, critic_skipped=2),
    ]
    config = tiny_config
    done = Done().after(bad, config)
    assert done.skipped == 2
    assert done.after([row(2, reward=0.0, actor_skipped=1)], config).skipped == 3
    mixed = [row(2, reward=0.0), row(3, reward=0.0, critic_skipped=1)]
    assert done.after(mixed, config).skipped == 1
    assert done.after(mixed[::-1], config).skipped == 1  # in the updates' order, not the rows'
    assert done.after([row(2, reward=0.0)], config).skipped == 0


def test_an_iterations_first_prompts_go_on_where_the_last_ones_ended(quick_content, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(4)))
    config = check_config(quick_content | {"prompts": {"source": "jsonl", "path": str(path)}}, "c")
    experiment = build(config, "c", torch.device("cpu"))
    dialogues = [dialogue for iteration in range(2) for dialogue in first_prompts(experiment, iteration)]
    assert [dialogue.number for dialogue in dialogues] == [0, 1, 2, 3]
    assert sorted(dialogue.question for dialogue in dialogues) == [0, 1, 2, 3]
    assert [dialogue.prompt for dialogue in dialogues] == [f"q{dialogue.question}" for dialogue in dialogues]
    assert {dialogue.turns for dialogue in dialogues} == {1}


@pytest.mark.parametrize("where", ["run_training", "build_validation"])
def test_too_little_memory_while_training_stops_the_run_in_one_line(tiny_content, tmp_path, monkeypatch, where):
    def full(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(f"rlhf_marl.api.{where}", full)
    monkeypatch.setattr("rlhf_marl.api.prepare_validation", lambda *_: Prepared([], 1, []))
    with pytest.raises(RlhfMarlError, match=r"(out of|not fit into) memory \(.*\): "):
        rlhf_marl.train(tiny_content, run_dir=tmp_path / "run")


def test_the_best_adapters_are_the_last_result_to_be_written(tiny_content, tmp_path, monkeypatch):
    """The newest come first, because lost agents come back for them; the best say that all are there."""
    written = []
    monkeypatch.setattr(LocalTeam, "save_adapters", lambda self, folder: written.append(folder.name))
    train(tiny_content, tmp_path / "run")
    assert written == ["adapters", "best"]
