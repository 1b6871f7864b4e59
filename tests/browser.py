"""A headless Chromium that a test talks to through a pipe, by the DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WAIT = 60
_START = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page of a browser; messages of its console, its errors and its requests are kept.

    Example::

        with Browser(tmp_path) as page:
            page.open(file)
            assert page.run("document.title") == "..."
    """

    def __init__(self, folder: Path, *, width: int = 1400, height: int = 900) -> None:
        self.folder, self.size = folder, (width, height)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number, self._session, self._rest = 0, None, b""

    def __enter__(self) -> Browser:
        # Chromium reads commands from its file 3 and answers on its file 4
        commands, self._out = os.pipe()
        self._in, answers = os.pipe()
        width, height = self.size
        line = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            f"--user-data-dir={self.folder}", f"--window-size={width},{height}", "--disable-dev-shm-usage",
            "--disable-background-networking", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(commands), str(answers), *line], pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        os.set_blocking(self._in, False)
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        return self

    def __exit__(self, *of_error: object) -> None:
        self._session = None
        with suppress(AssertionError, OSError, TimeoutError):
            self.call("Browser.close")
        os.close(self._out)
        os.close(self._in)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
            return
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _WAIT
        while b"\0" not in self._rest:
            try:
                read = os.read(self._in, 1 << 20)
                assert read, "the browser is gone"
                self._rest += read
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError("the browser does not answer") from None
                time.sleep(0.005)
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(told["args"]))

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def open(self, file: Path, fragment: str = "") -> None:
        self.call("Page.navigate", url=file.resolve().as_uri() + fragment)
        until = time.monotonic() + _WAIT
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < until
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """The value of an expression; of a promise, what it comes to."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str) -> None:
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            code = {"Enter": 13, "Tab": 9}.get(key, 0)
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text if kind == "keyDown" else "",
                      windowsVirtualKeyCode=code)  # fmt: skip

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        told = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
