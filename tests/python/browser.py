# SPDX-License-Identifier: MIT
"""Chromium without a window, driven through a pair of pipes: what a page does, shows and says."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page:
    """A page of the browser; its problems (errors, warnings, refusals of the policy) are in ``problems``."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._from = to, os.fdopen(answers, "rb")
        self._number = 0
        self._session: str | None = None
        self._rest = b""
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the DevTools protocol and its result; what happens meanwhile is noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            got = self._read()
            if got.get("id") == self._number:
                assert "error" not in got, (method, got)
                return got["result"]
            self._note(got)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = self._from.read1()
            assert data, "the browser ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] != "info":
            self.problems.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.problems.append(json.dumps(parameters["args"]))

    def open(self, url: str) -> None:
        """Go there; wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of a script."""
        got = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in got, (script, got)
        return got["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a script's value is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, (condition, self.run("document.body.innerText"))
            time.sleep(0.03)

    def text(self, selector: str) -> str:
        """What is shown in an element."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Click where the middle of an element is, as a mouse does."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'nearest'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def type(self, text: str) -> None:
        """Put text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0, text: str = "") -> None:
        """Press and release a key; Shift is 8 among the ``modifiers``."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=modifiers, text=text if kind == "keyDown" else "",
            )  # fmt: skip

    def enter(self) -> None:
        """The Enter key."""
        self.press("Enter", 13, text="\r")

    def size(self, width: int, height: int, mobile: bool = False, dark: bool = False) -> None:
        """Set the size of the window and whether the system prefers dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def screenshot(self, file: Path) -> None:
        """Save what is seen as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh browser with one page, until the context ends."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program and shutil.which("apt-cache"):
        offered = subprocess.run(["apt-cache", "show", "chromium"], capture_output=True, check=False)
        if offered.returncode == 0:
            pytest.skip("Chromium is not installed, and apt has it: apt install chromium")
    if not program:
        pytest.skip("this machine has no Chromium, and apt has none")
    (to_read, to), (answers, from_write) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, from_write)]  # neither is 3 or 4
    command = [
        "bash", "-c", f'exec "$0" "$@" 3<&{ends[0]} 4>&{ends[1]}', program, "--headless",
        "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox", "--disable-gpu",
        "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, pass_fds=ends, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    for end in (to_read, from_write, *ends):
        os.close(end)
    try:
        yield Page(to, answers)
    finally:
        process.kill()
        process.wait()
        os.close(to)
