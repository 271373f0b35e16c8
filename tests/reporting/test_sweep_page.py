"""sweep.html: the numbers, relative links, failures, and text that stays text."""

import re

from rlhf_marl.reporting.sweep_page import sweep_page
from tests.reporting.runs import HOSTILE
from tests.reporting.sweeps import sweep_numbers


def body(page: str) -> str:
    """The page without scripts and embedded data."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_numbers_and_relative_links():
    text = body(sweep_page(sweep_numbers(), "name"))
    assert '+1.50<small class="">[+1.25, +1.75]</small>' in text
    assert '-1.00<small class="down">[-1.25, -0.75]</small>' in text
    assert 'href="rounds%3D20/2/report.html"' in text
    assert text.index('data-chart="team"') < text.index('data-chart="agent 0"')
    assert "2 × no clear change" in text
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_runs_that_are_not_finished_are_named_and_not_linked():
    sweep = sweep_numbers()
    sweep["arms"][1]["runs"][2] |= {"state": "failed", "reason": "the service is down"}
    text = body(sweep_page(sweep, "name"))
    assert "rounds=20/2: the service is down" in text
    assert "rounds%3D20/2/report.html" not in text


def test_hostile_text_is_never_markup():
    for hostile in HOSTILE:
        page = sweep_page(sweep_numbers(model=hostile, arms=("a", hostile)), hostile)
        assert not re.search(r"<(img|b>|a href='j)", body(page))
        assert page.count("</script>") == 3
        assert "\u202e" not in page
        assert "\x1b" not in page


def test_one_arm_without_differences():
    sweep = sweep_numbers()
    sweep["arms"], sweep["differences"] = sweep["arms"][:1], []
    text = body(sweep_page(sweep, "name"))
    assert "Differences between arms" not in text
    assert "Held out" not in text
