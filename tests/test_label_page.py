"""The labelling page in a real Chromium, driven by the keyboard."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.label_kit import write_jsonl
from trainers.affect.label.log import read_log
from trainers.affect.label.state import LabelState

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
TEXTS = [
    ("<img src=x onerror=\"document.title='pwned'\"><b>bold?</b>", []),
    ("you said you'd be home. it's midnight", ["where are you", "on my way"]),
    ("bins go out tuesday now", []),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def labelling(tmp_path):
    """A running `limbic label web`; gives its link and its log."""
    rows = write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"id": f"r{n}", "text": text, "context": context}
            for n, (text, context) in enumerate(TEXTS)
        ],
    )
    log = tmp_path / "labels.log"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trainers.affect.label",
            "web",
            "--log",
            log,
            "--rows",
            rows,
            "--rater",
            "ana",
            "--port",
            "0",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    line = process.stdout.readline()
    link = re.search(r"http://\S+", line)
    assert link, line
    yield link[0], log
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


class Page:
    def __init__(self, driver, link):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver, self._by, self._wait = driver, By, WebDriverWait(driver, 15)
        driver.get("about:blank")
        driver.get(link)
        self.until(lambda: self.find("text").is_displayed())

    def find(self, name):
        return self.driver.find_element(self._by.ID, name)

    def until(self, condition):
        self._wait.until(lambda _: condition())

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def outputs(self):
        return [o.text for o in self.driver.find_elements(self._by.CSS_SELECTOR, ".field output")]

    def pressed_tags(self):
        found = self.driver.find_elements(self._by.CSS_SELECTOR, "#tags [aria-pressed=true]")
        return [tag.text.split()[-1] for tag in found]


def labels_in(log: Path):
    return {row: LabelState(read_log(log)).labels(row).get("ana") for row in ("r0", "r1", "r2")}


def test_keys_alone_label_undo_redo_and_finish(browser, labelling):
    from selenium.webdriver.common.keys import Keys

    link, log = labelling
    page = Page(browser, link)
    seen = []
    first = page.find("text").text
    page.press("2", "8", "9", "7", "h")
    assert page.outputs() == ["−0.75", "+0.75", "+1.00", "0.70"]
    assert page.pressed_tags() == ["hostile_intimacy"]
    page.press(Keys.ARROW_UP, Keys.ARROW_LEFT)  # tension down one nudge
    assert page.outputs()[2] == "+0.95"
    page.press(Keys.ENTER)
    page.until(lambda: page.find("text").text != first)
    seen.append(first)

    page.press("z")
    page.until(lambda: page.find("text").text == first)
    assert page.outputs() == ["−0.75", "+0.75", "+0.95", "0.70"]
    page.press("y")
    page.until(lambda: page.find("text").text != first)

    second = page.find("text").text
    page.press("m", "needs context", Keys.ENTER, "5", "5", "5", "9", Keys.ENTER)
    page.until(lambda: page.find("text").text != second)
    page.press("k")
    page.until(lambda: page.find("empty").is_displayed())

    found = [label for label in labels_in(log).values() if label]
    assert sorted(label.scores for label in found) == [(-0.75, 0.75, 0.95), (0.0, 0.0, 0.0)]
    assert [label.note for label in found if label.note] == ["needs context"]
    whats = [decision.what for decision in read_log(log)]
    assert whats == ["add"] * 3 + ["rater", "label", "undo", "redo", "label", "skip"]


def test_an_unfinished_label_is_not_saved_and_says_what_is_missing(browser, labelling):
    from selenium.webdriver.common.keys import Keys

    link, log = labelling
    page = Page(browser, link)
    page.press("3", Keys.ENTER)
    page.until(lambda: "not saved" in page.find("message").text)
    assert "intimacy, tension, confidence" in page.find("message").text
    assert not any(labels_in(log).values())


def test_markup_in_a_message_is_shown_as_text(browser, labelling):
    link, _ = labelling
    page = Page(browser, link)
    shown = set()
    for _ in TEXTS:
        shown.add(page.find("text").text)
        before = page.find("text").text
        page.press("k")
        page.until(
            lambda before=before: (
                page.find("empty").is_displayed() or page.find("text").text != before
            )
        )
    assert shown == {text for text, _ in TEXTS}
    assert page.driver.title == "Label affect"
    assert page.find("text").find_elements("css selector", "*") == []


def test_the_guidelines_open_beside_the_row_and_the_page_logs_no_errors(browser, labelling):
    link, _ = labelling
    page = Page(browser, link)
    browser.get_log("browser")
    page.press("?")
    page.until(lambda: page.find("guidelines").is_displayed())
    assert "Labelling guidelines" in page.find("guidelines").text
    assert page.find("guidelines").find_elements("css selector", "table")
    page.press("?")
    page.until(lambda: not page.find("guidelines").is_displayed())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_link_without_the_token_shows_why_it_does_not_work(browser, labelling):
    from selenium.webdriver.support.ui import WebDriverWait

    link, _ = labelling
    browser.get("about:blank")
    browser.get(link.partition("#")[0])
    WebDriverWait(browser, 15).until(lambda d: d.find_element("id", "why").is_displayed())
    assert "token" in browser.find_element("id", "why").text
