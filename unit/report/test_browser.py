import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.report.files import write_pages
from unit.report.conftest import HOSTILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Where to keep screenshots for a look at them; nowhere by default.
KEEP = os.environ.get("REPORT_SCREENSHOTS")
SECONDS = 60
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

WIDEST = """
Array.from(document.querySelectorAll('main *')).filter(e => !e.closest('.scroll') && !e.closest('svg'))
  .map(e => [e.getBoundingClientRect().right, e.outerHTML.slice(0, 120)])
  .filter(([right]) => right > document.documentElement.clientWidth + 1)
"""
BROKEN_IMAGES = "Array.from(document.images).filter(i => !(i.complete && i.naturalWidth && i.alt)).map(i => i.alt)"
# Contrast as WCAG 2 defines it, of every text against the nearest background that is painted.
CONTRAST = """
(() => {
  const parts = css => css.match(/[\\d.]+/g).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest('.unseen, style')) continue;
    const css = getComputedStyle(e);
    const [a, b] = [parts(e.closest('svg') ? css.fill : css.color), behind(e)].map(luminance).sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([walk.currentNode.data.trim().slice(0, 40), css.color, css.fill]);
  }
  return found;
})()
"""


class Browser:
    """Chromium, driven through two pipes by its DevTools protocol, and everything it complains of or asks for."""

    def __init__(self, profile):
        commands, self._commands = map(high, os.pipe())
        self._answers, answers = map(high, os.pipe())
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(commands, 3), os.dup2(answers, 4)),
        )
        os.close(commands)
        os.close(answers)
        self._text, self._number, self.events, self._session = b"", 0, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, *, width, scheme, medium="screen"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=features)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._next())

    def ask(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def named(self, *methods):
        return [event["params"] for event in self.events if event.get("method") in methods]

    def keep(self, name):
        if KEEP:
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
            Path(KEEP, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _next(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self._text:
            assert select.select([self._answers], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
            data = os.read(self._answers, 2**16)
            assert data, "the browser ended"
            self._text += data
        message, _, self._text = self._text.partition(b"\0")
        return json.loads(message)


def high(descriptor):
    # Out of the way of 3 and 4, which is where the browser looks for its pipes.
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return copy


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def written(bundle):
    write_pages(bundle)
    return bundle.folder / "report.html"


@pytest.fixture(scope="module")
def hostile(spread):
    bundle = spread(list(HOSTILE.values()))
    write_pages(bundle)
    return bundle.folder / "report.html"


VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light"), "dark phone": (390, "dark")}


@pytest.mark.parametrize(("width", "scheme"), VIEWS.values(), ids=VIEWS)
def test_the_page_is_whole_quiet_and_readable(browser, written, width, scheme):
    browser.open(written, width=width, scheme=scheme)
    browser.keep(f"{width}-{scheme}")
    assert_quiet(browser, written)
    assert browser.ask("document.querySelector('h1').textContent") == "accepted"
    assert browser.ask("document.querySelectorAll('svg.plot').length") == 6
    assert browser.ask("document.images.length") == 6
    assert browser.ask(BROKEN_IMAGES) == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(WIDEST) == []
    assert browser.ask(CONTRAST) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_do_nothing_in_a_browser(browser, hostile, width):
    browser.open(hostile, width=width, scheme="dark")
    browser.keep(f"hostile-{width}")
    assert_quiet(browser, hostile)
    assert browser.named("Page.javascriptDialogOpening") == []
    assert browser.ask("document.querySelector('h1').getBoundingClientRect().bottom") < 600
    assert browser.ask("document.querySelectorAll('script, iframe, object').length") == 0
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(CONTRAST) == []


def test_what_is_folded_on_the_screen_is_on_paper(browser, written):
    hidden = "Array.from(document.querySelectorAll('details table')).filter(t => !t.checkVisibility()).length"
    browser.open(written, width=794, scheme="light")
    assert browser.ask(hidden) == browser.ask("document.querySelectorAll('details').length") >= 2
    browser.open(written, width=794, scheme="light", medium="print")
    browser.keep("print")
    assert browser.ask(hidden) == 0


def assert_quiet(browser, path):
    assert browser.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded") == []
    asked = [item["request"]["url"] for item in browser.named("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
