"""A headless Chromium: opens pages, runs scripts in them, and reports requests and what the console said."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1280,1700")
# WebGL without a graphics card.
DRAWN_BY_PROCESSOR = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def program() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "the slow tests need Chromium: .ci/chromium installs it"
    return found


def chromium(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    flags = (*FLAGS, "--disable-gpu", "--enable-logging=stderr")
    return subprocess.run([program(), *flags, *arguments], capture_output=True, text=True, timeout=timeout, check=True)


def console_errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line and "Download the" not in line]


@dataclass
class Browser:
    """A tab, controlled by the DevTools protocol through a pair of pipes.

    Args:
        requests: Addresses that the tab has asked for.
        errors: Of the console and of scripts.
    """

    _to: int
    _from: int
    _session: str | None = None
    _count: int = 0
    _rest: bytes = b""
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, page: Path) -> None:
        """Open a page and wait until it is loaded."""
        self.requests.clear()
        self._call("Page.navigate", url=page.absolute().as_uri())
        self.run("document.readyState === 'complete' || new Promise(done => addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """Return the value of an expression, or what it promises."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Press and release the mouse at a place of the tab."""
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self) -> bytes:
        """Return what the tab shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def attach(self) -> None:
        """Make the tab."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self._call("Page.bringToFront")  # a tab in the background draws nothing and takes no clicks

    def close(self) -> None:
        """Let the browser end."""
        self._session = None
        with suppress(EOFError):
            self._call("Browser.close")

    def _call(self, method: str, **arguments: object) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            received = os.read(self._from, 1 << 20)
            if not received:
                raise EOFError
            self._rest += received
        one, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(one)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        kind, content = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif kind == "Runtime.exceptionThrown" or (kind == "Log.entryAdded" and content["entry"]["level"] == "error"):
            self.errors.append(json.dumps(content))


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """Start a browser with a tab; `profile` is an empty folder for it."""
    read_by_it, to = os.pipe()
    back, written_by_it = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    command = f'exec "$0" "$@" 3<&{read_by_it} 4>&{written_by_it}'
    arguments = (*FLAGS, *(flags or DRAWN_BY_PROCESSOR), "--remote-debugging-pipe", f"--user-data-dir={profile}")
    process = subprocess.Popen(
        ["bash", "-c", command, program(), *arguments],
        pass_fds=(read_by_it, written_by_it),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_it)
    os.close(written_by_it)
    tab = Browser(to, back)
    try:
        tab.attach()
        yield tab
        tab.close()
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
