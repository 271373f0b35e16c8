"""The dialogue benchmark runs and compares its numbers with the goals; the grid world's compares equal work."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from rlhf_marl.gridworld.draws import draw_all
from rlhf_marl.gridworld.setting import Setting
from rlhf_marl.gridworld.training import train

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark():
    return loaded("dialogue")


@pytest.fixture(scope="module")
def grid():
    return loaded("gridworld")


def test_the_grids_plain_loop_computes_what_is_compiled(grid):
    """On the same random numbers, over two redraws of the positions: the same weights up to float32's rounding."""
    setting = Setting(signal="td_q", width=5, depth=2, iterations=25, critic_step_size=0.01, radius=0.05)
    draws = draw_all(setting, 0, range(1))
    actors, critics = grid.plain_loop(setting, draws, setting.iterations)
    compiled = train(setting, 0, range(1), [setting.iterations], draws=draws)
    for i in range(2):
        for level in range(2):
            critic, actor = (network.w[level].detach() for network in (critics[i], actors[i]))
            np.testing.assert_allclose(critic, compiled.critics.w[0, i, level], atol=1e-4)
            np.testing.assert_allclose(actor, compiled.policies[0].w[0, i, level], atol=1e-4)
        assert np.abs(compiled.policies[0].w[0, i] - draws.actor_w[0, i]).max() > 0.005


def test_a_missing_folder_is_reported_before_the_grid_is_measured(grid, tmp_path):
    done = CliRunner().invoke(grid.main, ["--json", str(tmp_path / "no" / "numbers.json")])
    assert done.exit_code == 2
    assert "is not a folder" in done.output
    assert "seed-steps" not in done.output


def test_ratios_are_medians_of_the_repeats_own_ratios(benchmark):
    times = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]}
    assert benchmark.ratio(times, "slow", "fast") == 2.0


def test_a_step_runs_once_before_it_counts_and_steps_take_turns(benchmark):
    order = []

    def step(name):
        return lambda: order.append(name) or float(len(order))

    times = benchmark.repeated({"a": step("a"), "b": step("b")}, 2)
    assert order == ["a", "a", "b", "b"] * 2
    assert times == {"a": [2.0, 6.0], "b": [4.0, 8.0]}


def test_goals_are_reported_as_met_or_not(benchmark, capsys):
    benchmark.verdicts({"decode_over_floor": 1.5, "iteration_speedup_over_trl": 2.0, "memory_8_over_1": None})
    lines = capsys.readouterr().out.splitlines()
    assert any("decode_over_floor" in line and line.endswith("1.50   at most 2.0: met") for line in lines)
    assert any("iteration_speedup_over_trl" in line and line.endswith("at least 4.0: not met") for line in lines)
    assert not any("memory_8_over_1" in line for line in lines)


@pytest.mark.filterwarnings("ignore")  # the peers' own
def test_a_tiny_model_is_measured(benchmark, tiny_content, tmp_path):
    config, numbers = tmp_path / "tiny.yaml", tmp_path / "numbers.json"
    config.write_text(yaml.safe_dump(tiny_content))
    arguments = [str(config), "--json", str(numbers), "--only", "decode,generation,backward", "--repeats", "1"]
    done = CliRunner().invoke(benchmark.main, [*arguments, "--new-tokens", "3"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(numbers.read_text())
    assert {"stacked_over_base_generation", "stacked_over_base_backward", "decode_over_floor"} <= found.keys()
    assert {"generation_speedup_over_peft_mixed", "generation_speedup_over_three_copies"} <= found.keys()
    assert all(value > 0 for name, value in found.items() if "decode" not in name)  # a difference of short times


def test_an_unknown_part_is_one_line(benchmark):
    done = CliRunner().invoke(benchmark.main, ["--only", "speed"])
    assert done.exit_code == 2
    assert "--only: 'speed' is no part; choose from decode, generation" in done.output


def test_no_script_shadows_a_module():
    """A script's folder is first on sys.path: numba once imported a script named coverage.py."""
    done = subprocess.run([sys.executable, FOLDER / "gridworld.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_critics_benchmark_by_hand():
    """Returns with γ = 1/2; correlation on the dialogues not learned from, without the first turn."""
    critic = loaded("critic")
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert critic.returns_of(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0]]
    returns = torch.arange(44.0).view(44, 1).repeat(1, 3)
    values, order = 2 * returns + torch.tensor([0.0, 5.0, -3.0]), torch.arange(44)
    values[:, 0] = 0
    assert critic.correlation(values, returns, order) == pytest.approx(1.0)
    assert critic.correlation(-values, returns, order) == pytest.approx(-1.0)


def test_the_critics_ridge_regression_finds_a_linear_return():
    critic, generator = loaded("critic"), torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, 5, generator=generator)
    returns = features @ torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    order = torch.randperm(60, generator=generator)
    values = critic.ridge_values(features, returns, order, 1e-6)
    assert critic.correlation(values, returns, order) > 0.999


@pytest.fixture(scope="module")
def cooperation():
    return loaded("cooperation")


def test_shares_are_the_way_from_the_untrained_agents_to_the_yardstick(cooperation):
    rows = [
        {"arm": "untrained", "seed": 0, "returns": [0.0, 0.2]},
        {"arm": "untrained", "seed": 1, "returns": [0.2, 0.2]},
        {"arm": "gossip_20", "seed": 0, "returns": [0.4, 0.4]},
        {"arm": "gossip_20", "seed": 1, "returns": [0.1, 0.2]},
    ]
    shares = cooperation.shares(rows, 0.7)["gossip_20"]
    assert shares == pytest.approx({0: 0.3 / 0.6, 1: -0.05 / 0.5})
    assert cooperation.shares(rows, "gossip_20")["gossip_20"] == pytest.approx({0: 0.3 / 0.175, 1: -0.05 / 0.075})
    with pytest.raises(cooperation.click.ClickException, match="no finished run of arm centralised"):
        cooperation.shares(rows, "centralised")


def test_the_contrasts_p_values_are_those_of_students_tables(cooperation):
    """Three differences with mean 0.2 and standard error 0.05: t = 2, 4 and 6 with 2 degrees of freedom.

    With 2 degrees of freedom the upper tail is (1 - t / sqrt(t^2 + 2)) / 2.
    """
    spread = 0.05 * 3**0.5
    differences = np.array([0.2 - spread, 0.2, 0.2 + spread])
    tail = {t: (1 - t / (t**2 + 2) ** 0.5) / 2 for t in (2, 4, 6)}
    p = {kind: cooperation.Contrast("a", "b", kind).p_value(differences) for kind in ("above", "equal", "other")}
    assert p == pytest.approx({"above": tail[2], "equal": 1 - tail[2], "other": 2 * tail[4]})


def test_a_run_of_cooperation_becomes_a_line_and_is_not_repeated(cooperation, tiny_model_folder, tmp_path, monkeypatch):
    config = yaml.safe_load(Path("configs/keys.yaml").read_text()) | {"iterations": 1, "dialogues": 2}
    config["model"] = {"name": str(tiny_model_folder)}
    config["critic"] |= {"width": 8}
    config["generation"] |= {"max_prompt_tokens": 200}
    (tmp_path / "keys.yaml").write_text(yaml.safe_dump(config))
    task = replace(cooperation.TASKS["keys"], config=str(tmp_path / "keys.yaml"))
    monkeypatch.setattr(cooperation, "PLAYED", 4)
    path, out = tmp_path / "keys.jsonl", tmp_path / "runs"
    cooperation.measure(task, path, [0], ["gossip_20"], out, 1)
    rows = cooperation.read_lines(path)
    assert [(row["arm"], row["seed"], len(row["returns"])) for row in rows] == [
        ("untrained", 0, 4),
        ("gossip_20", 0, 4),
    ]
    assert "| gossip_20 | 1 |" in cooperation.table(rows, task)
    trained = list(out.glob("*/*"))
    assert len(trained) > 1
    shutil.rmtree(out)
    cooperation.measure(task, path, [0], ["gossip_20"], out, 1)
    assert cooperation.read_lines(path) == rows
    assert list(out.glob("*/*")) == []


def test_dialogues_stand_side_by_side_and_cannot_end_their_block():
    rows = [
        {
            "question": question,
            "turn": turn,
            "policy": policy,
            "prompt": f"{policy}'s?" if turn else f"{question}?",
            "responses": ["fine", "```\n# mine" if policy == "trained" else "ok"],
            "aggregate_scores": {"judge": 0.5},
        }
        for policy in ("base", "trained")
        for question, turn in (("a", 0), ("a", 1), ("b", 0), ("c", 0), ("d", 0), ("e", 0))
    ]
    page = "\n\n".join(loaded("side_by_side").markdown(rows, 3, 20))
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## a", "## a, turn 2", "## d"]
    assert page.count("base models: judge +0.50") == page.count("````text\n0: fine\n1: ```\n   # mine\n````") == 3
    assert [page.count(prompt) for prompt in ("a?", "d?", "base's?", "trained's?")] == [1, 1, 1, 1]


def test_what_a_neighbour_learns_by_hand():
    """Six agents: r + e has R² 1 / 1.01; behind large masks of a complete graph only the five others' sum is known."""
    privacy = loaded("privacy")
    plain, masked = privacy.td("complete", 1, 0.0), privacy.td("complete", 20, 1e3)
    assert plain["neighbours"] == pytest.approx(1 / 1.01, abs=1e-6)
    assert masked["neighbours"] == pytest.approx(1 / 1.01 / 5, abs=1e-3)
    assert privacy.td("ring", 1, 0.0)["further"] == pytest.approx(0, abs=1e-6)
    for optimizer in ("sgd", "adam"):
        shown, hidden = (list(privacy.critic(optimizer, size)) for size in (0.0, 10.0))
        assert privacy.r2(shown) > 0.999
        assert privacy.r2(hidden) < 0.2


def test_large_teams_by_hand():
    """On a ring of eight σ_2 is (1 + 2 cos 45°) / 3 = 0.805, and 0.805^22 < 0.01; lost messages that both ends leave
    out keep the mean, and those that the receiver replaces do not."""
    row = loaded("distributed").scale("ring", 8)
    assert (row["neighbours"], row["enough"], row["sent"]) == (2.0, 22, 44 * 1_572_864)
    calm, agreed, replaced, going = (row[case] for case in ("calm", "agreed", "replaced", "going"))
    assert calm[19][0] < 0.805**20
    assert max(off for _, off in calm + agreed) < 1e-12
    assert min(off for _, off in replaced[20:]) > 1e-3
    assert calm[-1][0] < agreed[-1][0] < 1e-6
    assert going[-1][0] < 0.1
