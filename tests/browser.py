"""Chromium, driven without a library: what the tests of the page, and the script that makes the
pictures of it, have in common."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --hide-scrollbars "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe"
)
LAUNCH = """if True:  # Chromium hears on 3 and speaks on 4
    import os, sys
    ear, voice = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
    os.dup2(ear, 3), os.dup2(voice, 4), os.set_inheritable(3, True), os.set_inheritable(4, True)
    os.execv(sys.argv[3], sys.argv[3:])
"""


MOMENT = 0.05


def moments() -> range:
    """A minute of moments. They are counted, not read from a clock: if the machine sleeps, or the
    processes are stopped for a while, that is one of them."""
    return range(int(60 / MOMENT))


class Browser:
    """Chromium, told what to do over a pair of pipes in its own protocol: JSON, and a zero byte."""

    def __init__(self, profile: str):
        self.session: str | None = None
        hear, its_voice = os.pipe()
        its_ear, speak = os.pipe()
        ends = (str(its_ear), str(its_voice))
        command = (CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *ends, *command],
            pass_fds=(its_ear, its_voice),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_ear)
        os.close(its_voice)
        self.hear, self.speak = os.fdopen(hear, "rb", 0), os.fdopen(speak, "wb", 0)
        self.buffer, self.count = b"", 0
        self.events: list[dict[str, Any]] = []

    def start(self) -> None:
        """Open the one tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.speak.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            for _ in moments():
                if select.select([self.hear], [], [], MOMENT)[0]:
                    break
            else:
                raise AssertionError("the browser says nothing for a minute")
            more = self.hear.read(1 << 16)
            assert more, "the browser went away"
            self.buffer += more
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, AssertionError):
            self.session = None
            self.call("Browser.close")
        self.hear.close(), self.speak.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def open(self, path: Path) -> None:
        """Show a file, and forget what was said of the one before."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true in the page."""
        for _ in moments():
            if self.ask(expression):
                return
            time.sleep(MOMENT)
        raise AssertionError(f"not true within a minute: {expression}")

    def sees(self) -> list[tuple[str, str]]:
        """What a screen reader is given: (role, name) of every element that has one, in order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def text(self, selector: str) -> str:
        return self.ask(f"document.querySelector({json.dumps(selector)}).textContent")

    def click(self, selector: str) -> None:
        """A real click, in the middle of what is there, which must be what is seen there."""
        x, y, hit = self.ask(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: "center"}}); const b = e.getBoundingClientRect();
            const x = b.x + b.width / 2, y = b.y + b.height / 2;
            return [x, y, e.contains(document.elementFromPoint(x, y))]; }})()"""
        )
        assert hit, f"{selector} is covered or out of sight"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def complaints(self) -> list[Any]:
        """Errors and warnings since the page was opened, and whatever it asked of a network."""
        self.ask("0")
        wrong = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                wrong.append(params)
            if method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    wrong.append(url)
        return wrong

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def move(self, x: float, y: float) -> None:
        """The pointer to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def shape(self, width: int, height: int, scale: float = 1) -> None:
        """The size of the window; a narrow one is a telephone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=width < 500)  # fmt: skip

    def theme(self, theme: str, media: str = "screen") -> None:
        """Light or dark; on a screen or in print."""
        scheme = {"name": "prefers-color-scheme", "value": theme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def picture(self, selector: str, margin: int = 8) -> bytes:
        """An element and a margin around it as PNG."""
        x, y, width, height = self.ask(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            const b = e.getBoundingClientRect();
            return [b.x + scrollX, b.y + scrollY, b.width, b.height]; }})()"""
        )
        clip = {"x": x - margin, "y": y - margin, "width": width + 2 * margin,
                "height": height + 2 * margin, "scale": 1}  # fmt: skip
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(answer["data"])


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser, which is gone afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Browser(profile)
        try:
            chromium.start()
            yield chromium
        finally:
            chromium.close()
