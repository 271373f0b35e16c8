"""The benchmark of the dialogue system runs, and says what it measured beside what is wanted."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("dialogue_benchmark", FOLDER / "dialogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_goals_are_told_met_or_not(benchmark, capsys):
    benchmark.verdicts({"decode_over_floor": 1.5, "iteration_speedup_over_trl": 2.0, "memory_8_over_1": None})
    lines = capsys.readouterr().out.splitlines()
    assert any("decode_over_floor" in line and line.endswith("1.50   at most 2.0: met") for line in lines)
    assert any("iteration_speedup_over_trl" in line and line.endswith("at least 3.0: not met") for line in lines)
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
