"""Headless Chromium, driven by the DevTools protocol."""

import asyncio
import base64
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import DEVNULL
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from milo_discovery.testing import eventually_blocking

_STARTED_WITHIN_S = 60.0
_AXE_VERSION = "4.11.0"


def chromium() -> str:
    """Return the path of the browser; skip the test if there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed (Debian's package chromium): the page is tested as text only")


class Browser:
    """One page in a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        """Errors of scripts, violations of the content security policy, failed requests."""

    async def read(self) -> None:
        """Read messages until the connection to the browser closes."""
        async for message in self._socket:
            received = message.json()
            if "id" in received:
                self._answers.pop(received["id"]).set_result(received)
            elif received["method"] == "Log.entryAdded":
                self.complaints.append(received["params"]["entry"]["text"])
            elif received["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(received["params"]["exceptionDetails"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        received = await self._send(method, **parameters)
        assert "error" not in received, received
        result: dict[str, Any] = received["result"]
        return result

    async def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_STARTED_WITHIN_S):
            return await answer

    async def evaluate(self, script: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until(f"document.readyState === 'complete' && location.href.startsWith({url.partition('#')[0]!r})")

    async def until(self, condition: str) -> None:
        """Wait until a script returns true, even if the page navigates during the wait."""
        async with asyncio.timeout(_STARTED_WITHIN_S):
            while not await self._holds(condition):  # noqa: ASYNC110 - no event reports the state
                await asyncio.sleep(0.05)

    async def _holds(self, condition: str) -> bool:
        answer = await self._send("Runtime.evaluate", expression=f"!!document.body && ({condition})")
        found: bool = answer.get("result", {}).get("result", {}).get("value") is True
        return found

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def press(self, key: str) -> None:
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text
            )

    async def theme(self, name: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": name}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self, file: Path) -> None:
        taken = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(file.write_bytes, base64.b64decode(taken["data"]))


@contextmanager
def running() -> Iterator[str]:
    """Run Chromium; yield the URL of its DevTools."""
    program = chromium()
    with TemporaryDirectory(prefix="milo-chromium-", ignore_cleanup_errors=True) as directory:
        command = (
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-port=0", f"--user-data-dir={directory}", "about:blank",
        )  # fmt: skip
        with subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL) as process:
            try:
                port = Path(directory) / "DevToolsActivePort"
                eventually_blocking(lambda: port.exists() and "\n" in port.read_text(), within_s=_STARTED_WITHIN_S)
                yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
            finally:
                process.kill()


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Browser]:
    """Open a page in the Chromium whose DevTools are at this URL."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{url}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            browser = Browser(socket)
            reading = asyncio.create_task(browser.read(), name="browser messages")
            for domain in ("Page", "Runtime", "Log"):
                await browser.call(f"{domain}.enable")
            try:
                yield browser
            finally:
                reading.cancel()
        async with session.get(f"{url}/json/close/{page['id']}"):
            pass


async def violations(browser: Browser) -> list[str]:
    """Return the accessibility violations on the page, by rule and element; skip the test where axe cannot be
    installed.
    """
    await browser.evaluate((await asyncio.to_thread(_axe)).read_text() + "; undefined")
    found = await browser.evaluate(
        "axe.run().then(({violations}) => "
        "violations.flatMap(each => each.nodes.map(node => `${each.id}: ${node.html}`)))"
    )
    return [str(violation) for violation in found]


def _axe() -> Path:
    """Return the script of axe-core, from a cache of its npm package."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "milo-discoveryd" / f"axe-{_AXE_VERSION}"
    script = cache / "node_modules/axe-core/axe.min.js"
    if not script.exists():
        if (npm := shutil.which("npm")) is None:
            pytest.skip("no npm on this machine: axe, which checks accessibility, is an npm package")
        cache.mkdir(parents=True, exist_ok=True)
        package = f"axe-core@{_AXE_VERSION}"
        subprocess.run([npm, "install", "--silent", "--no-save", "--prefix", str(cache), package], check=True)
    return script
