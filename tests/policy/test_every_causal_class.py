"""The table of every causal class in docs/compatibility.md."""

import re

import pytest

from tests.policy.every_causal_class import CLASSES, HEADING, row_of
from tests.tables import PAGE, table

ROWS = {row[0]: row for row in table(HEADING)}


def test_the_page_counts_its_rows():
    works, every, refused = map(
        int, re.search(r"(\d+) of (\d+) model types work, (\d+) are refused", PAGE.read_text("utf-8")).groups()
    )
    results = [row[2] for row in ROWS.values()]
    assert works == results.count("works")
    assert refused == sum(result.startswith("refused: ") for result in results)
    assert works + refused == every == len(ROWS)


@pytest.mark.slow
def test_the_page_lists_every_class():
    assert {row[0]: row[1] for row in ROWS.values()} == CLASSES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", CLASSES)
def test_a_class_trains_as_peft_does_or_is_refused_in_one_line(model_type, tmp_path):
    assert row_of(model_type, tmp_path) == ROWS[model_type]
