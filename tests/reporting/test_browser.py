"""The page in headless Chromium."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest
import yaml

from rlhf_marl.reporting.page import write_report
from rlhf_marl.reporting.sweep_page import sweep_page
from tests.reporting.runs import CARDS, HOSTILE, write_run
from tests.reporting.sweeps import sweep_numbers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium is installed (Debian: apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

CURVES = "[data-chart=reward] .scatterlayer path.js-line"


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Open a file; every console message, error and request to anywhere else fails the test at its end."""
    complaints: list[str] = []
    contexts = []

    def go(path, *, width=1200, scheme="light", fragment=""):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url[:200]))
        page.goto(path.as_uri() + fragment)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report([write_run(tmp_path_factory.mktemp("browser") / "run")])


def see_all(page) -> None:
    """Bring every chart into view and wait until it is drawn."""
    for chart in page.locator("[data-chart]").all():
        chart.scroll_into_view_if_needed()
        chart.locator(".main-svg").first.wait_for(state="attached")


def test_every_chart_is_drawn(visit, report):
    page = visit(report)
    see_all(page)
    assert page.locator(CURVES).count() == 4  # agents and team
    legend = page.locator("[data-chart=reward] .legendtext").all_text_contents()
    assert [name.split()[0] for name in legend] == ["0", "1", "2", "team"]
    assert page.locator(CURVES).nth(3).evaluate("path => getComputedStyle(path).strokeDasharray") != "none"
    points = page.locator("[data-chart=reward] .scatterlayer path.point").count()
    assert points == 36  # three agents, twelve dialogues
    heights = {page.locator(CURVES).nth(i).bounding_box()["height"] for i in range(3)}
    assert min(heights) > 20  # rewards rise
    assert page.locator("[data-chart=heat] .heatmaplayer text, [data-chart=heat] .heatmap-label").count() >= 16
    page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    place = page.locator("[data-chart=reward] .nsewdrag").bounding_box()
    shown = page.locator("[data-chart=reward] .hoverlayer text", has_text="vowels")
    for step in range(30):  # the first only enters the chart, and a busy machine takes its time
        page.mouse.move(place["x"] + place["width"] / 2 + step % 2 * 5, place["y"] + 40)
        page.wait_for_timeout(200)
        if shown.count():
            break
    hover = page.locator("[data-chart=reward] .hoverlayer").text_content()
    assert "0 vowels" in hover
    assert "‹img" in hover  # a card's name, as text


def test_a_real_run_from_training_to_the_page(run, tiny_content, tmp_path, visit):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_content))
    code, _, errors = run("train", "tiny.yaml", "--run-dir", "out")
    assert code == 0, errors
    page = visit(tmp_path / "out" / "report.html")
    see_all(page)
    assert page.locator(CURVES).count() == 3  # two agents and the team
    assert page.locator(".count").inner_text() == "4 of 4 dialogues"
    assert page.locator("svg.topology circle").count() == 2


STATE = """() => ({
    theme: document.documentElement.dataset.theme, where: document.querySelector(".where").textContent,
    details: [...document.querySelectorAll("details")].map(one => one.open),
    focused: document.activeElement.textContent, top: Math.round(scrollY), before: window.before ?? null,
})"""


def test_the_page_of_a_run_under_way_reloads_itself_and_the_reader_stays(visit, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_marl.reporting.page._RELOAD", 1.2)
    run_dir = write_run(tmp_path / "run", evaluated=False)
    report = write_report([run_dir], under_way=True)
    os.utime(report, (1_600_000_000, 1_600_000_000))  # in 2020
    page = visit(report)
    page.emulate_media(reduced_motion="reduce")  # a smooth scroll still under way would move the page after scrollTo
    assert "2020" in page.locator(".written").inner_text()
    search = page.get_by_label("Text")
    search.fill("prompt 3.1")
    page.evaluate("window.before = 1")
    page.wait_for_timeout(2000)
    assert page.evaluate(STATE)["before"] == 1  # nobody's filters are lost
    page.get_by_role("button", name="Switch between light and dark").click()
    page.get_by_text("config.yaml", exact=True).click()
    page.evaluate("history.replaceState(null, '', '#run0/training/1/0')")
    page.evaluate("document.querySelector('form').reset(); dispatchEvent(new Event('hashchange'))")
    page.get_by_role("button", name="Turn ›").click()
    page.evaluate("scrollTo({top: 777, behavior: 'instant'})")
    assert page.evaluate(STATE)["top"] == 777
    for _ in range(2):
        page.wait_for_event("load")
        assert page.evaluate(STATE) == {
            "theme": "dark",
            "where": "2 of 12: iteration 0, dialogue 1, turn 2 of 3",
            "details": [True, False],
            "focused": "Turn ›",
            "top": 777,
            "before": None,
        }
    write_report([run_dir])  # training has ended
    page.wait_for_event("load")
    page.evaluate("window.before = 2")
    page.wait_for_timeout(2000)
    assert page.evaluate(STATE)["before"] == 2
    assert "reloads itself" not in page.locator("main").inner_text()


def test_browser_steps_with_buttons_and_keys(visit, report):
    page = visit(report)
    page.get_by_label("Show").select_option("training")
    where = page.locator(".where")
    assert where.inner_text() == "1 of 12: iteration 0, dialogue 0, turn 1 of 3"
    assert page.locator(".answer .said").all_inner_texts() == [
        *(f"answer {i} of 0.0.0" for i in range(3)),
        "answer 0 of 0.0.0",
    ]
    assert page.get_by_role("button", name="‹ Turn").is_disabled()
    page.get_by_role("button", name="Turn ›").click()
    assert page.locator(".prompt .said").inner_text() == "prompt 0.0.1"
    page.keyboard.press("ArrowRight")
    assert where.inner_text().endswith("turn 3 of 3")
    page.get_by_role("button", name="Dialogue ›").click()
    assert where.inner_text() == "2 of 12: iteration 0, dialogue 1, turn 1 of 3"
    page.keyboard.press("ArrowDown")
    assert where.inner_text().startswith("3 of 12: iteration 1")
    assert page.url.endswith("#run0/training/2/0")


def test_a_link_opens_its_dialogue(visit, report):
    page = visit(report, fragment="#run0/training/5/2")
    assert page.locator(".where").inner_text() == "6 of 12: iteration 2, dialogue 1, turn 3 of 3"
    assert page.locator(".prompt .said").inner_text() == "prompt 2.1.2"


def test_a_wrong_link_opens_the_page(visit, report):
    page = visit(report, fragment="#run0/training/999/0")
    for fragment in ("#run9/training/0/0", "#run0/constructor/0/0", "#%3Cimg"):
        page.evaluate("fragment => { location.hash = fragment; }", fragment)
        assert page.locator(".where").inner_text().startswith("1 of 4")


def test_base_and_trained_are_shown_side_by_side(visit, report):
    page = visit(report)
    assert page.locator(".policy").all_inner_texts() == ["Base model", "Trained agents"]
    said = page.locator(".answer .said").all_inner_texts()
    assert said[0] == "base answer 0"
    assert said[4] == "trained answer 0"
    assert page.locator(".answer.team").count() == 2
    assert "held 0.25" in page.locator(".answer.team").first.inner_text()


def test_search_and_score_filter(visit, report):
    page = visit(report)
    page.get_by_label("Show").select_option("training")
    count = page.locator(".count")
    page.get_by_label("Text").fill("PROMPT 3.1")
    assert count.inner_text() == "1 of 12 dialogues"
    page.get_by_label("Text").fill("nowhere said")
    assert count.inner_text() == "0 of 12 dialogues"
    assert "No dialogue matches" in page.locator(".dialogue").inner_text()
    page.get_by_label("Text").fill("")
    page.locator("select[name=agent]").select_option("0")
    page.get_by_label("Score from").fill("0.75")  # agent 0 has 0, 0.1 ... 1.1
    assert count.inner_text() == "4 of 12 dialogues"
    page.get_by_label("to", exact=True).fill("0.95")
    assert count.inner_text() == "2 of 12 dialogues"
    page.get_by_label("Show").select_option("evaluation")
    assert count.inner_text() == "0 of 4 dialogues"  # vowels gives agent 0 0, 0.5, 1 and 1.5
    page.get_by_label("Score from").fill("0.4")
    assert count.inner_text() == "1 of 4 dialogues"


def test_hostile_text_is_shown_and_inert(visit, tmp_path):
    page = visit(write_report([write_run(tmp_path / "run", texts=HOSTILE)]))
    see_all(page)
    for source in ("evaluation", "training"):
        page.get_by_label("Show").select_option(source)
        said = page.locator(".answer .said").all_inner_texts()
        assert said[0] == HOSTILE[0]
        assert said[1] == HOSTILE[1]
        assert "{{7*7}}" in said[1]
        assert said[2].startswith("⟨U+202E⟩gnp.exe ⟨U+001B⟩[31mred")
        assert "<a href='javascript:" in said[2]
    page.get_by_text("config.yaml", exact=True).click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main textarea, .dialogue a, .dialogue b").count() == 0
    links = page.locator("a").evaluate_all("found => found.map(a => a.getAttribute('href') || a.href.baseVal || '')")
    assert not [link for link in links if link.startswith("javascript")]
    assert CARDS[1] in page.locator(".cards").inner_text()


def test_inline_scripts_are_refused(chromium, report):
    """The policy is active: an injected script whose hash it does not name is blocked."""
    page = chromium.new_page()
    page.goto(report.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">')")
    page.evaluate(
        "{const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s)}"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.close()


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two CSS colours."""

    def luminance(colour: str) -> float:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)


COLOURS = """selector => {
    const found = document.querySelector(selector);
    let box = found;
    while (getComputedStyle(box).backgroundColor === "rgba(0, 0, 0, 0)" && box.parentElement) box = box.parentElement;
    const style = getComputedStyle(found);
    return [found.tagName === "text" ? style.fill : style.color, getComputedStyle(box).backgroundColor];
}"""
TEXTS = [
    "main p",
    ".hint",
    ".verdict",
    ".said",
    ".scores li",
    ".answer .label",
    ".down",
    ".up",
    ".notes li",
    "caption",
    "button",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_light_and_dark(visit, report, scheme):
    page = visit(report, scheme=scheme)
    see_all(page)
    for bright in (scheme == "light", scheme != "light"):
        for selector in [*TEXTS, "[data-chart=reward] .xtick text", "[data-chart=reward] .legendtext"]:
            text, behind = page.evaluate(COLOURS, selector)
            assert contrast(text, behind) >= 4.5, (selector, text, behind)
        assert (contrast(page.evaluate(COLOURS, "main p")[1], "rgb(0, 0, 0)") > 10) == bright
        page.get_by_role("button", name="Switch between light and dark").click()


def test_no_horizontal_scroll_on_a_phone(visit, report):
    page = visit(report, width=320)
    see_all(page)
    page.locator("details").evaluate_all("found => found.forEach(d => d.open = true)")
    for width in (320, 390, 768):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_runs_side_by_side(visit, tmp_path):
    runs = [write_run(tmp_path / "gossip"), write_run(tmp_path / "alone", iterations=3, evaluated=False)]
    page = visit(write_report(runs, tmp_path / "both.html"))
    see_all(page)
    assert page.locator("[data-chart=compare] .scatterlayer path.js-line").count() == 6
    assert page.locator("[data-browser]").count() == 2
    page.get_by_role("link", name="alone").click()
    assert page.locator("#run1 .count").inner_text() == "6 of 6 dialogues"


def test_every_input_has_a_name(visit, report):
    page = visit(report)
    named = "all => all.every(e => e.labels?.length || e.getAttribute('aria-label') || e.textContent.trim())"
    assert page.locator("input, select, button").evaluate_all(named)


def test_a_sweeps_curves_and_bands_are_drawn(visit, tmp_path):
    file = tmp_path / "sweep.html"
    file.write_text(sweep_page(sweep_numbers(), "sweep"), "utf-8")
    page = visit(file)
    see_all(page)
    assert page.locator("[data-chart=team] .scatterlayer path.js-fill").count() == 2
    assert page.locator("[data-chart=team] .legendtext").all_text_contents() == ["rounds=0", "rounds=20"]
    assert page.locator("[data-chart]").count() == 3
