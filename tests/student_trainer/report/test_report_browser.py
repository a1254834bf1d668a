"""The report in a browser: drawn without errors, a trip picked and seen, played, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from support.report_city import call, city
from support.seeded_city import add_seeds

__all__ = ["city"]

pytestmark = pytest.mark.integration

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COUNT = """([id, colour]) => {
  const canvas = document.getElementById(id), copy = new OffscreenCanvas(canvas.width, canvas.height);
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const d = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  let count = 0;
  for (let i = 0; i < d.length; i += 4) if (d[i] === r && d[i + 1] === g && d[i + 2] === b && d[i + 3] === 255) count++;
  return count;
}"""
"""Pixels of a canvas that are exactly of a colour."""
SPOT = """(() => {
  const [x, y] = map.start(map.pairs[3].origin), { left, top } = map.overlay.getBoundingClientRect(), { view } = map;
  return [left + map.width / 2 + (x - view.x) * view.k, top + map.height / 2 + (y - view.y) * view.k];
})()"""
"""Where on the screen the origin of a pair is."""
HERE = ("file", "data")
COVERED = """() => [...document.querySelectorAll('a[href^="#"]')].filter((link) => {
  document.documentElement.style.scrollBehavior = 'auto';
  const target = document.querySelector(link.getAttribute('href'));
  if (!target || target.id === 'about' || target.id === 'training') return false;
  target.scrollIntoView();
  return target.querySelector('h1, h2').getBoundingClientRect().top < document.querySelector('.top').offsetHeight;
}).map((link) => link.textContent)"""
"""The sections whose headings the bar would cover."""
FIRST, SECOND = "#0072B2", "#D55E00"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Browser, city: Path, width: int = 1280, height: int = 900, scheme: Any = "light") -> Page:
    """The report, with a record of what went wrong and of what was asked for in `page.wrong`."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: wrong.append(asked.url) if asked.url.partition(":")[0] not in HERE else None)
    page.wrong = wrong  # type: ignore[attr-defined]
    page.goto((city / "report" / "report.html").as_uri())
    return page


def until(page: Page, condition: str) -> None:
    """Waits for a condition; the page forbids what Playwright's own waiting evaluates."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def pixels(page: Page, canvas: str, colour: str) -> int:
    return int(page.evaluate(COUNT, [canvas, colour]))


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_drawn_and_nothing_is_wider_than_the_screen(
    browser: Browser, city: Path, width: int, height: int, scheme: str
) -> None:
    page = opened(browser, city, width, height, scheme)
    assert page.locator("h1").inner_text() == "Generated trips"
    assert page.locator("html").get_attribute("data-theme") == scheme
    assert page.locator("#table tbody tr[data-metric]").count() > 25
    assert not page.locator("#table").is_visible()
    page.locator('a[href="#metrics"]').click()
    assert page.locator("#table").is_visible()
    assert page.evaluate(COVERED) == []
    assert page.locator("#headline li").count() == 3 and page.locator("#picture svg circle").count() == 2
    page.locator("#about summary").last.click()
    assert page.locator("#environment").inner_text().count('"python"') == 1, "equal environments are shown once"
    assert page.locator("#histograms figure svg").count() == 5
    assert page.locator("#curves figure").count() == 2
    assert page.locator(".verdicts li.worse").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("map.frames.length") >= 1
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == ("dark" if scheme == "light" else "light")
    assert not page.wrong  # type: ignore[attr-defined]
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_arms_over_seeds_are_drawn(
    browser: Browser, city: Path, tmp_path_factory: pytest.TempPathFactory, width: int, scheme: str
) -> None:
    """Legends, cards and the table have an entry an arm, floors are lines beside them, and nothing is too wide."""
    root = tmp_path_factory.mktemp("arms")
    evaluations = add_seeds(city, root)
    assert call("compare", "--evaluations", evaluations, "--out", root / "c", "bootstrap.draws=100") == 0
    runs = ",".join(str(root / arm / f"seed{seed}") for arm in ("distilled", "vanilla") for seed in (1, 2))
    given = ("--evaluations", evaluations, "--comparison", root / "c", "--runs", runs, "--out", root / "report")
    assert call("report", "--data", city / "store", *given) == 0
    page = opened(browser, root, width, 844, scheme)
    assert page.locator("#headline h3").all_text_contents() == ["distilled against vanilla"]
    assert page.locator("#headline li").first.inner_text().startswith("Next road right: ")
    assert page.locator("#picture line[stroke-dasharray]").count() == 3, "floors are lines of the picture"
    page.locator("#fold").click()
    assert page.locator("#table thead th").all_inner_texts()[1:4] == [
        "vanilla\n2 seeds",
        "distilled\n2 seeds",
        "shortest-path",
    ]
    assert page.locator('#table tr[data-metric="next_road_accuracy"] small', has_text="floor: ").count() == 3
    assert page.locator("#cards .card").first.locator("div").all_inner_texts()[-1].startswith("best floor")
    legend = page.locator("#curves figure").last.locator(".legend span").all_inner_texts()
    assert legend[:2] == ["distilled (2 seeds)", "vanilla (2 seeds)"] and legend[2].startswith("floor: ")
    assert page.locator("#verdicts h3").count() == 0, "the first arm's heading is that of the three sentences"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.wrong  # type: ignore[attr-defined]
    page.context.close()


def test_a_trip_is_picked_and_drawn_played_and_left(browser: Browser, city: Path) -> None:
    page = opened(browser, city)
    assert pixels(page, "overlay", FIRST) == 0
    assert page.locator("#play").is_disabled()
    page.locator("#trips button").nth(1).click()
    assert page.locator("#trips button").nth(1).get_attribute("aria-selected") == "true"
    for colour in (FIRST, SECOND):
        assert pixels(page, "overlay", colour) > 30
    assert page.locator("#details tbody tr").count() == 3

    page.locator("#clock").fill("0")
    page.evaluate("window.before = map.place(map.selected.real, map.time)")
    assert page.locator("#now").inner_text() == "0:00"
    page.locator("#speed").select_option("240")
    page.locator("#play").click()
    until(page, "map.time > 30")
    page.locator("#play").click()
    moved = "Math.hypot(...map.place(map.selected.real, map.time).map((v, i) => v - window.before[i]))"
    assert page.evaluate(moved) > 10
    stood = page.evaluate("map.time")
    page.wait_for_timeout(100)
    assert page.evaluate("map.time") == stood
    page.locator("#overlay").press("Escape")
    assert pixels(page, "overlay", FIRST) == 0
    assert not page.wrong  # type: ignore[attr-defined]
    page.context.close()


def test_the_map_moves_and_its_dots_can_be_picked(browser: Browser, city: Path) -> None:
    page = opened(browser, city)
    canvas = page.locator("#overlay")
    before = page.evaluate("({...map.view})")
    canvas.press("ArrowLeft")
    canvas.press("+")
    page.locator("#zoom-in").click()
    until(page, "!map.asked")
    after = page.evaluate("({...map.view})")
    assert after["x"] < before["x"] and after["k"] == pytest.approx(before["k"] * 1.4 * 1.5)
    page.locator("#fit").click()
    canvas.scroll_into_view_if_needed()
    spot = page.evaluate(SPOT)
    page.mouse.click(*spot)
    chosen = page.evaluate("map.selected && map.selected.origin")
    assert chosen == page.evaluate("map.pairs[3].origin")
    page.mouse.move(*spot)
    held = page.evaluate("({...map.view})")
    page.mouse.wheel(0, -300)
    until(page, f"map.view.k > {held['k']}")
    assert not page.wrong  # type: ignore[attr-defined]
    page.context.close()


def test_trips_are_filtered_and_walked_through_by_keys(browser: Browser, city: Path) -> None:
    page = opened(browser, city, 390, 844)
    every = page.locator("#trips button").count()
    page.locator("#filter").select_option("not arrived")
    some = page.locator("#trips button").count()
    assert 0 < some < every
    page.locator("#order").select_option("farthest first")
    page.locator("#trips").press("ArrowDown")
    page.locator("#trips").press("ArrowDown")
    assert page.locator("#trips button").nth(1).get_attribute("aria-selected") == "true"
    assert page.locator("#details td", has_text="dead end").count() >= 1
    farthest = "(p) => Math.max(...Object.values(p.models).map((m) => m.metrics.hausdorff_km))"
    distances = page.evaluate(f"listed.map({farthest})")
    assert distances == sorted(distances, reverse=True)
    assert not page.wrong  # type: ignore[attr-defined]
    page.context.close()
