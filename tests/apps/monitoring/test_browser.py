"""The live page in a real browser: loads, follows the run, comes back, fits a phone, no complaints.

Needs Debian's chromium and chromium-driver, and the package selenium.
"""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from federation import free_port, wait_for

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
webdriver = pytest.importorskip("selenium.webdriver")

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromium-driver"),
]

QUIETLY = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 60.0
PHONE = 390


@pytest.fixture
def browser(chromium):
    """A browser whose log has only what the test's own pages say."""
    yield chromium
    chromium.get("about:blank")
    chromium.get_log("browser")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*QUIETLY, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def monitor(run: Path, port: int):
    """The command, for the time of a block; gives what it printed of the address."""
    command = [sys.executable, "-m", "flower_split.apps.cli", "monitor", str(run)]
    with subprocess.Popen(
        [*command, "--address", f"127.0.0.1:{port}"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().strip()
            wait_for(lambda: answers(address), "the monitor answers", SECONDS)
            yield address
        finally:
            process.terminate()


def answers(address):
    try:
        return httpx.get(f"{address}health", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def text(browser, element="body"):
    return browser.execute_script(f"return document.querySelector({element!r}).textContent")


def is_lost(browser):
    return not browser.execute_script("return document.getElementById('line').hidden")


def test_the_page_follows_a_run_and_comes_back(browser, run, log, loss):
    port = free_port()
    with monitor(run, port) as address:
        browser.get(address)
        assert "tiny-model" in text(browser) and "3.25" in text(browser, "#silos")
        log.tell("silo-joined", silo="<script>document.title='run'</script>")
        loss(log, "north", 1, 2.125)
        wait_for(lambda: "2.125" in text(browser, "#silos"), "the page follows", SECONDS)
        assert "<script>" in text(browser, "#silos") and browser.title != "run"
        assert browser.execute_script("return document.querySelectorAll('#losses svg').length")
        assert browser.get_log("browser") == []
    wait_for(lambda: is_lost(browser), "the page says that nobody answers", SECONDS)
    assert "does not answer: trying again" in text(browser, "#line")
    log.tell("run-ended", state="completed", why="", seconds=9.0, left=["adapter"])
    with monitor(run, port):
        wait_for(lambda: "completed" in text(browser, "#top"), "the page comes back", SECONDS)
        assert not is_lost(browser)
        browser.get_log("browser")  # of the time without a server
        loss(log, "north", 2, 1.0625)
        wait_for(lambda: "1.062" in text(browser, "#silos"), "it stays open", SECONDS)
        assert browser.get_log("browser") == []


@pytest.mark.exhaustive
def test_it_is_usable_on_a_phone(browser, run, log, loss):
    for number in range(12):
        loss(log, f"a silo with a long name, number {number}", 1, 2.0 + number / 10)
    metrics = {"width": PHONE, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    with monitor(run, free_port()) as address:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            browser.get(address)
            wide = "return [document.documentElement.scrollWidth, window.innerWidth]"
            assert browser.execute_script(wide) == [PHONE, PHONE]
            small = "return getComputedStyle(document.querySelector('#silos td')).fontSize"
            assert float(browser.execute_script(small).removesuffix("px")) >= 14
            assert browser.get_log("browser") == []
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
