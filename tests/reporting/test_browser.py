"""The report in a browser without a network: nothing goes wrong, slices move, sides flicker, ratings are saved.

Skipped where there is no Chromium; `make test-browser` fails there.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from reports import HOSTILE

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
HEAD = "case\trating\tnote\tcorrect\texclude\tlabel_next"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if not found or not driver:
        reason = "no chromium and chromedriver here (Debian: chromium, chromium-driver): the report is not opened"
        if os.environ.get("LRLS_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = found
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,800",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.downloads = tmp_path_factory.mktemp("downloads")
    chrome.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(chrome.downloads)})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield chrome
    chrome.quit()


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something; returns it."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


@pytest.fixture
def page(browser: Any, made_report: Any) -> Any:
    """The report as a newcomer opens it."""
    browser.get((made_report.folder / "index.html").as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get((made_report.folder / "index.html").as_uri())
    return browser


def named(page: Any, name: str) -> Any:
    return page.find_element("id", name)


def pixels(page: Any, plane: str = "axial") -> str:
    return page.execute_script("return document.getElementById(arguments[0]).toDataURL()", plane)


def opened(page: Any, number: int) -> Any:
    page.execute_script("location.hash = `#case-${arguments[0]}`", number)
    until(lambda: " of " in named(page, "axial-number").text and named(page, "side").text)
    return page


def press(page: Any, *keys: str) -> None:
    for key in keys:
        named(page, "axial").send_keys(key)


def test_the_page_opens_without_an_error_and_runs_no_name(page):
    opened(page, 1)
    assert named(page, "viewer-h").text == HOSTILE
    page.execute_script("document.getElementById('close').click()")
    for section in ("methods", "registration", "done", "review"):
        page.execute_script("document.getElementById(arguments[0])?.scrollIntoView()", section)
    time.sleep(0.3)
    assert page.title != "owned"
    assert [entry["message"] for entry in page.get_log("browser")] == []
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert page.execute_script(broken) == []


def test_slices_move_and_sides_flicker_by_keys(page):
    opened(page, 0)
    assert named(page, "side").text.startswith("A: scan, ")
    before, place = pixels(page), named(page, "axial-number").text
    press(page, "\ue013")  # arrow up
    until(lambda: named(page, "axial-number").text != place)
    assert pixels(page) != before
    answer = pixels(page)
    press(page, " ")
    until(lambda: named(page, "side").text.startswith("B: scan, truth"))
    assert pixels(page) != answer
    press(page, " ")
    until(lambda: named(page, "side").text.startswith("A: "))
    assert pixels(page) == answer
    press(page, "o")
    until(lambda: pixels(page) != answer)
    press(page, "j")
    until(lambda: named(page, "viewer-place").text.startswith("2 of 3") or named(page, "viewer-place").text == "3 of 3")


def test_every_plane_has_a_slider_with_a_name(page):
    opened(page, 0)
    for plane in ("axial", "coronal", "sagittal"):
        slider = named(page, f"{plane}-slice")
        assert slider.get_attribute("aria-label") == f"{plane.capitalize()} slice"
        page.execute_script("arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input'))", slider)
        until(lambda plane=plane: named(page, f"{plane}-number").text.startswith("4 of "))


def test_ratings_are_kept_and_saved_as_they_were_said(page):
    opened(page, 1)
    press(page, "2")
    for name in ("correct", "label_next"):
        page.find_element("name", name).click()
    note = page.find_element("name", "note")
    hostile = "=cmd|' /C calc'!A0\tone\nline \"quoted\" \u202e<b>"
    page.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        note,
        hostile,
    )
    page.refresh()
    until(lambda: named(page, "said-count").get_attribute("textContent") == "1")
    page.execute_script("document.getElementById('close').click(); document.getElementById('save').click()")
    saved = until(lambda: next(iter(page.downloads.glob("*.tsv")), None))
    until(lambda: saved.stat().st_size)
    lines = saved.read_text(encoding="utf-8").split("\n")
    assert lines == [HEAD, f"{HOSTILE}\t2\tcmd|' /C calc'!A0 one line 'quoted'  <b>\tyes\t\tyes", ""]
    page.execute_script("localStorage.clear()")
    page.refresh()
    assert not named(page, "said-count").is_displayed()
    named(page, "load").send_keys(str(saved))
    until(lambda: named(page, "said-count").get_attribute("textContent") == "1")
    assert named(page, "review-status").get_attribute("textContent") == "1 read."
    saved.unlink()


def test_filters_leave_what_was_asked_for(page):
    named(page, "find").send_keys("test_1")
    until(lambda: named(page, "shown").text == "1 of 3 scans")
    shown = [card for card in page.find_elements("css selector", ".card") if card.is_displayed()]
    assert len(shown) == 1
    assert "test_1" in shown[0].text


def test_a_filter_that_nothing_passes_says_so(page):
    assert not named(page, "none-shown").is_displayed()
    named(page, "find").send_keys("no such scan")
    until(lambda: named(page, "none-shown").is_displayed())


def test_the_table_of_a_scan_says_whose_numbers_it_holds(page):
    opened(page, 0)
    heads = [[cell.text for cell in row.find_elements("tag name", "th")]
             for row in named(page, "structures-head").find_elements("tag name", "tr")]  # fmt: skip
    chief = heads[0][2]
    assert heads == [["structure", "DSC", chief, "truth"], ["", "affine", "unet", "HD95 mm", "ml", "ml"]]
    assert chief in page.find_element("css selector", "#review-form legend").text


def test_a_folder_that_is_not_whole_says_so(browser, made_report, tmp_path):
    copy = tmp_path / "report"
    shutil.copytree(made_report.folder, copy)
    (copy / "cases" / "0.js").unlink()
    browser.get((copy / "index.html").as_uri())
    browser.execute_script("location.hash = '#case-0'")
    until(lambda: "keep the folder of the report together" in named(browser, "viewer-error").text)
