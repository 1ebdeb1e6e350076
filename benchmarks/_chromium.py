"""A headless Chromium, spoken to through the DevTools protocol over a pipe.

Source: https://chromedevtools.github.io/devtools-protocol/; with --remote-debugging-pipe the
browser reads messages from descriptor 3 and writes to 4, each ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["BrowserError", "Page", "find_browser", "open_page"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ANSWER_SECONDS = 120.0
_CHUNK = 2**16


class BrowserError(RuntimeError):
    """The browser, or the page in it, did not do what was asked."""


class Page:
    """One page of a running browser."""

    def __init__(self, read: int, write: int) -> None:
        """
        Args:
            read, write: descriptors of the pipe.
        """
        self._read, self._write = read, write
        self._buffer = bytearray()
        self._events: list[dict[str, Any]] = []
        self._sent = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._ask("Page.enable")

    def watch(self) -> None:
        """Keep what the page asks the network for and what it writes to its console."""
        for domain in ("Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def go_offline(self) -> None:
        """Let no request reach a network."""
        conditions = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._ask("Network.emulateNetworkConditions", offline=True, **conditions)

    def events(self) -> list[dict[str, Any]]:
        """What has been kept since `watch`, or since it was last asked for."""
        found, self._events = self._events, []
        return found

    def look(
        self, *, width: int, height: int, scheme: str, mobile: bool = True, scale: int = 2
    ) -> None:
        """Set the size in CSS pixels, and "light" or "dark".

        Args:
            mobile: a page wider than the screen can be moved sideways, as on a phone.
            scale: pixels of a picture per CSS pixel.
        """
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", features=features)

    def go(self, url: str) -> None:
        """Start to load a page."""
        answer = self._ask("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to; anything that JSON can hold."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Save what the page looks like as PNG.

        Args:
            whole: from its top to its end, not only what the window shows.
        """
        more: dict[str, Any] = {}
        if whole:
            size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
            more["clip"] = {"x": 0, "y": 0, "scale": 1} | {
                side: size[side] for side in ("width", "height")
            }
        answer = self._ask(
            "Page.captureScreenshot", format="png", captureBeyondViewport=True, **more
        )
        file.write_bytes(base64.b64decode(answer["data"]))

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key where the focus is.

        Args:
            key: its name in the DOM.
            code: its key code in Windows.
            text: what it types.
        """
        words = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text=text, **words)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **words)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        try:
            while content:
                content = content[os.write(self._write, content) :]
        except BrokenPipeError as error:
            raise BrowserError("the browser has ended") from error
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._next(deadline)
            if answer.get("id") != self._sent:
                if "method" in answer:
                    self._events.append(answer)
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error'].get('message')}")
            result: dict[str, Any] = answer["result"]
            return result

    def _next(self, deadline: float) -> dict[str, Any]:
        while (end := self._buffer.find(b"\0")) < 0:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._read], [], [], remaining)[0]:
                raise BrowserError(f"the browser gave no answer within {_ANSWER_SECONDS:.0f} s")
            chunk = os.read(self._read, _CHUNK)
            if not chunk:
                raise BrowserError("the browser has ended")
            self._buffer += chunk
        message: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message


def find_browser() -> str | None:
    """The path of an installed Chromium; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)


@contextmanager
def open_page(browser: str, profile: Path, options: Sequence[str] = ()) -> Iterator[Page]:
    """A page of a browser of its own, which ends with the block.

    Args:
        profile: an empty folder.
        options: more of the browser's own.
    """
    # High numbers, so that moving them to 3 and 4 in the child overwrites neither.
    ours, theirs = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 16) for end in (*theirs, *ours)]
    for end in (*ours, *theirs):
        os.close(end)
    their_read, our_write, our_read, their_write = ends

    def place() -> None:
        os.dup2(their_read, 3)
        os.dup2(their_write, 4)

    command = [
        browser,
        "--headless=new",
        "--no-sandbox",  # it only opens pages of this machine, and containers often lack namespaces
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        *options,
        "about:blank",
    ]
    process = subprocess.Popen(
        command,
        preexec_fn=place,
        pass_fds=(3, 4),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_read)
    os.close(their_write)
    try:
        yield Page(our_read, our_write)
    finally:
        os.close(our_write)  # it ends when nobody can speak to it
        os.close(our_read)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
