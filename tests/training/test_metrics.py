"""Rows of a hand-made turn, and the checks of a resumed run's rows."""

import pytest
import torch

from rlhf_marl.config import check_config
from rlhf_marl.dialogue.controller import Merged
from rlhf_marl.dialogue.player import Turn
from rlhf_marl.errors import UsageError
from rlhf_marl.policy.sampler import Sample
from rlhf_marl.training.metrics import check_earlier, dialogue_rows, metric_rows
from tests.training.test_health import HEALTHY

SAMPLES = [
    [Sample([5, 6, 2], "ab", [-1.0] * 3, True), Sample([7], "c", [-1.0], False)],
    [Sample([8, 2], "d", [-1.0] * 2, True), Sample([9, 2], "e", [-1.0] * 2, True)],
]
TURN = Turn(
    number=1,
    dialogues=[4, 5],
    questions=[0, 3],
    prompts=["p", "q"],
    states=[[1], [2]],
    observations=[[[1], [2]]] * 2,
    lengths=[1, 1],
    samples=SAMPLES,
    merged=[Merged("both", "next?", fallback=False), Merged("c", None, fallback=True)],
    next_states=[[3], [2]],
    reward_raw=torch.tensor([[0.5, 1.0], [-2.0, 4.0]]),
    reward_scaled=torch.tensor([[5.0, 10.0], [-1.0, 2.0]]),
    value=torch.tensor([[0.25, 0.5], [0.75, 1.0]]),
)
LEARNED = {key: HEALTHY[key] for key in HEALTHY if key not in ("response_tokens", "controller_fallbacks")}


@pytest.fixture
def config(quick_content):
    return check_config(quick_content, "c")


def test_metric_rows_of_one_turn_by_hand(config):
    stages = {"generate": 1.50004, "update": 0.49996}
    options = {"update": 7, "iteration": 3, "stages": stages}
    learned = [LEARNED | {"reward_scaled": 7.5}, LEARNED | {"reward_scaled": 0.5, "entropy": 0.1}]
    rows = metric_rows(learned, [TURN], ["good", "kind"], config, **options)
    shared = {
        "update": 7,
        "iteration": 3,
        "turn": 1,
        "response_tokens": 2.0,
        "controller_fallbacks": 1,
        "tokens_per_second": 4.0,  # 8 tokens in 2 seconds
        "seconds": 2.0,
        "stage_seconds": {"generate": 1.5, "update": 0.5},
    }
    names = [{"agent": i, "name": f"agent {i}"} for i in range(2)]
    assert rows == [
        learned[0] | shared | names[0] | {"reward_model": "good", "truncated": 0.5, "warnings": []},
        learned[1] | shared | names[1] | {"reward_model": "kind", "truncated": 0.0, "warnings": ["entropy"]},
    ]


def test_metric_rows_of_several_turns_are_over_all_of_them(config):
    first = Turn(
        number=0,
        dialogues=[4],
        questions=[0],
        prompts=["o"],
        states=[[1]],
        observations=[[[1]]] * 2,
        lengths=[1],
        samples=[[Sample([5] * 8, "x", [-1.0] * 8, False)], [Sample([2], "", [-1.0], True)]],
        merged=[Merged("x", "p", fallback=True)],
        next_states=[[2]],
    )
    rows = metric_rows(
        [LEARNED] * 2, [first, TURN], ["a", "b"], config, update=0, iteration=0, stages={"generate": 4.0}
    )
    assert [row["turn"] for row in rows] == [1, 1]
    assert [row["response_tokens"] for row in rows] == [4.0, 5 / 3]  # 8 + 3 + 1 and 1 + 2 + 2 tokens
    assert [row["truncated"] for row in rows] == [2 / 3, 0.0]
    assert [row["controller_fallbacks"] for row in rows] == [2, 2]
    assert [row["tokens_per_second"] for row in rows] == [4.25, 4.25]  # 17 tokens in 4 seconds


def test_dialogue_rows_by_hand():
    assert list(dialogue_rows(TURN, 2)) == [
        {
            "iteration": 2,
            "dialogue": 4,
            "turn": 1,
            "question": 0,
            "prompt": "p",
            "responses": [
                {"tokens": [5, 6, 2], "text": "ab", "truncated": False},
                {"tokens": [8, 2], "text": "d", "truncated": False},
            ],
            "reward_raw": [0.5, -2.0],
            "reward_scaled": [5.0, -1.0],
            "critic_value": [0.25, 0.75],
            "aggregate": "both",
            "next_prompt": "next?",
            "controller_fallback": False,
        },
        {
            "iteration": 2,
            "dialogue": 5,
            "turn": 1,
            "question": 3,
            "prompt": "q",
            "responses": [
                {"tokens": [7], "text": "c", "truncated": True},
                {"tokens": [9, 2], "text": "e", "truncated": False},
            ],
            "reward_raw": [1.0, 4.0],
            "reward_scaled": [10.0, 2.0],
            "critic_value": [0.5, 1.0],
            "aggregate": "c",
            "next_prompt": None,
            "controller_fallback": True,
        },
    ]


# Two iterations of two dialogues with one turn and two agents.
METRICS = [
    HEALTHY | {"update": i, "iteration": i, "agent": agent, "reward_model": "m", "reward_scaled": 0.5}
    for i in range(2)
    for agent in range(2)
]
DIALOGUES = [{"iteration": number // 2, "dialogue": number, "turn": 0} for number in range(4)]


def test_whole_rows_in_any_order_are_silent(config, caplog):
    check_earlier(METRICS[::-1], DIALOGUES[::-1], config=config, iterations=2)
    check_earlier([], [], config=config, iterations=0)
    assert caplog.text == ""


def test_missing_rows_are_a_warning_that_counts_them(config, caplog):
    check_earlier(METRICS[1:], DIALOGUES[:1], config=config, iterations=2)
    assert [record.getMessage() for record in caplog.records] == [
        "metrics.jsonl: 1 of the 4 lines of finished iterations are missing; the run continues without them",
        "dialogues.jsonl: 3 of the 4 lines of finished iterations are missing; the run continues without them",
    ]


def test_updates_and_turns_are_counted_by_iteration(quick_content, caplog):
    """Four turns and two per update: updates 0 and 1 are the first iteration's, 2 and 3 the second's."""
    config = check_config(quick_content | {"turns": 4, "actor": {"turns_per_update": 2}}, "c")
    places = [(0, 0), (1, 0), (2, 1), (3, 1)]
    rows = [METRICS[agent] | {"update": u, "iteration": i} for u, i in places for agent in range(2)]
    dialogues = [
        {"iteration": i, "dialogue": number, "turn": k} for i in range(2) for number in (2 * i, 2 * i + 1)
        for k in range(4)
    ]  # fmt: skip
    check_earlier(rows, dialogues, config=config, iterations=2)
    assert caplog.text == ""
    with pytest.raises(UsageError, match="row 1 is damaged"):
        check_earlier([METRICS[0] | {"update": 1, "iteration": 1}], [], config=config, iterations=2)


@pytest.mark.parametrize(
    "bad",
    [
        METRICS[0],  # there twice
        {},
        METRICS[3] | {"iteration": 5},
        METRICS[3] | {"agent": 2},
        METRICS[3] | {"update": [1]},
        METRICS[3] | {"reward_model": 3},
        METRICS[3] | {"reward_model": "\ud800"},
        METRICS[3] | {"reward_scaled": "high"},
        METRICS[3] | {"entropy": None},
        METRICS[3] | {"response_tokens": 0},
    ],
)
def test_a_double_or_damaged_metrics_row_is_refused_by_its_number(config, bad):
    with pytest.raises(UsageError, match=r"--resume: metrics.jsonl: row 4 is damaged, duplicated") as caught:
        check_earlier([*METRICS[:3], bad], DIALOGUES, config=config, iterations=2)
    assert "\n" not in str(caught.value)
    assert "restore the file, or remove the line" in str(caught.value)


@pytest.mark.parametrize("bad", [DIALOGUES[1], {}, {"iteration": 0, "dialogue": 2, "turn": 0}, {"iteration": {}}])
def test_a_double_or_damaged_dialogue_row_is_refused_by_its_number(config, bad):
    with pytest.raises(UsageError, match=r"--resume: dialogues.jsonl: row 3 is damaged"):
        check_earlier(METRICS, [*DIALOGUES[:2], bad], config=config, iterations=2)
