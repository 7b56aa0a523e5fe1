"""The report in a browser: headless Chromium, one page for all tests of this file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.pictures import PACKAGES, find_chromium, open_chromium, show
from pipeline.datasets import figures
from report_making import CACHE, CLASSES, make_run
from stages.report import report

if find_chromium() is None:
    pytest.skip(
        f"there is no Chromium with a driver: apt-get install {PACKAGES}", allow_module_level=True
    )

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

Driver = Any

pytestmark = pytest.mark.slow

# Everything that a keyboard has to reach: what can be clicked, and what scrolls.
REACHABLE = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for index in range(len(CLASSES)):
        figures.render_one(folder / "videos", 0, "test", index)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return report(make_run(folder / "videos"), cache_path=CACHE).resolve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Driver]:
    with open_chromium() as driver:
        yield driver


@pytest.fixture
def driver(browser: Driver, page: Path) -> Driver:
    """The page, loaded anew: wide, light, with motion; at the end nothing was complained of."""
    show(browser, 1280, 900, dark=False)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    yield browser
    assert browser.get_log("browser") == []


def rows(driver: Driver, *, hidden: bool = False) -> list[str]:
    """The classes of the table, from top to bottom."""
    every = driver.find_elements(By.CSS_SELECTOR, "#table-1 tbody tr")
    shown = [row for row in every if hidden or row.is_displayed()]
    return [row.find_element(By.TAG_NAME, "th").text for row in shown]


def wait(driver: Driver, script: str) -> None:
    """Until a script answers true."""
    deadline = time.monotonic() + 20
    while not driver.execute_script(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.02)


def test_every_figure_is_drawn_and_nothing_was_fetched(driver: Driver) -> None:
    wait(driver, "return [...document.images].every((image) => image.complete)")
    drawn = driver.execute_script(
        "return [...document.querySelectorAll('svg[role=img], img, canvas, video')].map((one) => {"
        " const { width, height } = one.getBoundingClientRect();"
        " return [one.outerHTML.slice(0, 120), width, height, one.naturalWidth ?? 1]; })"
    )
    assert len(drawn) > 40
    for what, width, height, pixels in drawn:
        assert min(width, height, pixels) > 0, what
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    policy = "const image = new Image(); image.src = 'https://example.org/x.png'; return 1"
    assert "securitypolicyviolation" in driver.execute_async_script(
        "const done = arguments[0];"
        "addEventListener('securitypolicyviolation', (event) => done(event.type));"
        f"(() => {{ {policy} }})()"
    )
    (refused,) = driver.get_log("browser")  # the one that was just asked for
    assert "Content Security Policy" in refused["message"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_window_and_can_be_read(driver: Driver, width: int, dark: bool) -> None:
    show(driver, width, 900, dark=dark)
    inside, window = driver.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert inside <= window == width
    least = driver.execute_script(CONTRASTS)
    assert len(least) > 100
    for text, contrast in least:
        assert contrast >= 4.5, text  # WCAG AA


# The contrast of each text with the nearest background that is drawn behind it.
CONTRASTS = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
const light = (colours) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
    .map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, box = element.getBoundingClientRect();
  if (!walker.currentNode.data.trim() || box.width * box.height < 4) continue;
  if (element.closest('script, style, title, .hidden, svg g, [hidden]')) continue;
  const behind = [];
  for (let one = element; one; one = one.parentElement)
    behind.unshift(getComputedStyle(one).backgroundColor);
  const style = getComputedStyle(element);
  const colour = element.closest('svg') ? style.fill : style.color;
  const [low, high] = [light(behind), light([...behind, colour])].sort((a, b) => a - b);
  found.push([walker.currentNode.data.trim().slice(0, 60), (high + 0.05) / (low + 0.05)]);
}
return found;
"""


def test_the_filter_leaves_the_classes_that_have_the_text(driver: Driver) -> None:
    assert rows(driver) == CLASSES  # by gain: 50 points, −12.5 points, none
    field = driver.find_element(By.ID, "filter-1")
    field.send_keys("ALERT")
    assert rows(driver) == [CLASSES[1]]
    said = driver.find_element(By.CSS_SELECTOR, "[data-counts]")
    assert said.text == "1 of 3 classes"
    field.send_keys(Keys.CONTROL, "a", Keys.DELETE)
    assert rows(driver) == CLASSES
    assert said.text == "3 classes"


def test_the_table_sorts_by_what_is_clicked(driver: Driver) -> None:
    def sort(name: str) -> str | None:
        header = driver.find_element(By.XPATH, f"//table[@id='table-1']//th[.='{name}']")
        header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        sorted_by = driver.find_elements(By.CSS_SELECTOR, "#table-1 th[aria-sort]")
        assert [one.text for one in sorted_by] == [header.text]
        return str(header.get_attribute("aria-sort"))

    bow, script, seven = CLASSES
    assert sort("Class") == "ascending"
    assert rows(driver) == [script, seven, bow]
    assert sort("Class") == "descending"
    assert rows(driver) == [bow, seven, script]
    assert sort("Baseline") == "descending"
    assert rows(driver) == [script, bow, seven]  # 87.5, 25; what is unknown stands last
    assert sort("Baseline") == "ascending"
    assert rows(driver) == [bow, script, seven]
    assert sort("Videos") == "descending"
    assert rows(driver) == [script, bow, seven]  # 2, 1, 0


def test_the_sliders_move_the_curve(driver: Driver) -> None:
    def line() -> str:
        (online,) = driver.find_elements(By.CSS_SELECTOR, "#cost polyline.baseline")
        return str(online.get_attribute("points"))

    def said() -> str:
        text = driver.find_element(By.CSS_SELECTOR, "#cost [data-part=says]").text
        return str(text.replace("\u202f", " "))

    # 10 clips × 36.35 ms an epoch; the cache has 18 valid rows and one that is not finite.
    assert said().startswith("5 students of 5 epochs: online 9.09 s, from the cache 691 ms; ")
    before = line()
    students = driver.find_element(By.ID, "cost-students")
    students.send_keys(Keys.ARROW_RIGHT)
    assert said().startswith("6 students of 5 epochs: online 10.9 s, ")
    assert line() != before
    before = line()
    (epochs,) = driver.find_elements(By.CSS_SELECTOR, "[type=number][data-sets=epochs]")
    epochs.send_keys(Keys.CONTROL, "a")
    epochs.send_keys("300")
    assert said().startswith(
        "6 students of 300 epochs: online 10 min 54 s, from the cache 691 ms; "
    )
    assert driver.find_element(By.ID, "cost-epochs").get_attribute("value") == "300"
    assert "hours" not in (unit := driver.find_element(By.CSS_SELECTOR, "[data-part=unit]").text)
    assert unit == "minutes"
    label = driver.find_element(By.CSS_SELECTOR, "#cost svg.chart").get_attribute("aria-label")
    assert label.startswith("Teacher time in minutes by number of students: online it grows to 10")


def playing(driver: Driver) -> list[str]:
    return list(
        driver.execute_script(
            "return [...document.querySelectorAll('.film img')]"
            ".map((image) => image.getAnimations()[0].playState)"
        )
    )


def test_films_play_and_are_stopped_by_the_keyboard(driver: Driver) -> None:
    assert playing(driver) == ["running"] * 5
    film = driver.find_element(By.CLASS_NAME, "film")
    film.send_keys(Keys.SPACE)
    assert playing(driver) == ["paused"] + ["running"] * 4
    assert film.get_attribute("aria-pressed") == "false"
    film.send_keys(Keys.ENTER)
    assert playing(driver) == ["running"] * 5
    driver.find_element(By.ID, "play").send_keys(Keys.SPACE)
    assert playing(driver) == ["paused"] * 5
    place = "return getComputedStyle(document.querySelector('.film img')).transform"
    film.send_keys(Keys.HOME)
    before = driver.execute_script(place)
    film.send_keys(Keys.ARROW_RIGHT)
    assert driver.execute_script(place) != before
    film.send_keys(Keys.ARROW_LEFT)
    assert driver.execute_script(place) == before


def test_films_stand_still_where_less_motion_is_wanted(driver: Driver) -> None:
    reduced = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", reduced)
    driver.refresh()
    assert playing(driver) == ["paused"] * 5
    driver.find_element(By.CLASS_NAME, "film").send_keys(Keys.SPACE)  # unless one asks for it
    assert playing(driver) == ["running"] + ["paused"] * 4


def test_the_keyboard_reaches_everything(driver: Driver) -> None:
    driver.execute_script(
        "document.querySelectorAll(arguments[0]).forEach((one, at) => {one.dataset.at = at})",
        REACHABLE,
    )
    wanted = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one.dataset.at)",
        REACHABLE,
    )
    assert len(wanted) > 40
    reached = []
    for _ in wanted:
        ActionChains(driver, duration=0).send_keys(Keys.TAB).perform()
        reached.append(
            driver.execute_script(
                "const one = document.activeElement, { outlineStyle } = getComputedStyle(one);"
                "return [one.dataset.at, outlineStyle]"
            )
        )
    assert [at for at, _ in reached] == wanted  # in the order of the page
    assert {outline for _, outline in reached} <= {"solid", "auto"}  # and it shows


def test_without_a_script_the_page_says_the_same(driver: Driver, page: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(page.as_uri())
        assert rows(driver) == CLASSES
        assert not driver.find_element(By.ID, "filter-1").is_displayed()
        text = driver.find_element(By.ID, "saved").text.replace("\u202f", " ")
        assert "5 students of 5 epochs: online 9.09 s, from the cache 691 ms" in text
        assert "50 1 min 31 s 9 min 5 s 30 min 18 s 1 h 31 min" in text
        assert driver.find_element(By.CSS_SELECTOR, "#cost svg.chart").is_displayed()
        driver.find_element(By.ID, "play").send_keys(Keys.SPACE)  # stops the films without one
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert playing(driver) == ["paused"] * 5
