"""The page of a running daemon, in a browser."""

import asyncio
import json
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from milo_discovery import DiscoveryClient
from tests.end_to_end.process.conftest import Place, folder, place
from tests.end_to_end.process.daemon import DaemonProcess
from tests.tooling.deploy.web import get

__all__ = ["folder", "place"]


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium is installed: the page is judged as text alone")


async def in_browser(url: str, profile: Path, *flags: str) -> tuple[str, str]:
    """The document as the browser has it in the end, and what it complained of."""
    process = await asyncio.create_subprocess_exec(
        chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", *flags, url,
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        document, said = await process.communicate()
    console = "\n".join(line for line in said.decode().splitlines() if "CONSOLE" in line)
    return document.decode(), console


async def page_of(daemon: DaemonProcess) -> str:
    await daemon.start()
    await daemon.until_said('"synced"')
    return str(daemon.events("started")[-1]["http"])


async def test_status_page_renders_in_browser_without_errors(place: Place, tmp_path: Path) -> None:
    place.sandbox.projects.create("alpha", ready=True, organization="acme")
    place.sandbox.projects.create("waiting", ready=False)
    async with place.daemon(http_listen="127.0.0.1:0") as daemon, place.client() as client:
        url = await page_of(daemon)
        watch = client.watch(label_selector="env=prod")
        await watch.synced()
        document, complaints = await in_browser(f"{url}/", tmp_path, "--dump-dom")
    assert complaints == ""
    for words in ("STREAMING", "alpha", "acme", "waiting", "not ready", "env in (prod)"):
        assert words in document


async def test_status_page_screenshot_can_be_taken(place: Place, tmp_path: Path) -> None:
    place.sandbox.populate(12)
    picture = tmp_path / "page.png"
    async with place.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        await in_browser(f"{url}/", tmp_path, f"--screenshot={picture}", "--window-size=1000,800")
    assert picture.read_bytes().startswith(b"\x89PNG")


async def test_search_and_state_choose_among_the_clusters(place: Place) -> None:
    for name in ("alpha", "beta"):
        place.sandbox.projects.create(name, ready=True)
    place.sandbox.projects.create("alphabet", ready=False)
    async with place.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)

        async def shown(query: str) -> list[str]:
            return [row["name"] for row in json.loads(await get(f"{url}/?json&{query}"))["clusters"]]

        assert await shown("") == ["alphabet", "alpha", "beta"]
        assert await shown("q=ALPHA") == ["alphabet", "alpha"]
        assert await shown("state=ready") == ["alpha", "beta"]
        assert await shown("q=alpha&state=ready") == ["alpha"]


async def test_recent_changes_are_listed_newest_first_with_deleted_clusters(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon(http_listen="127.0.0.1:0") as daemon:
        url = await page_of(daemon)
        place.sandbox.projects.delete("alpha")
        await daemon.until_said('"disengaged"')
        status = json.loads(await get(f"{url}/?json"))
    [happened] = status["recent_changes"]
    assert (happened["type"], happened["cluster"], happened["reason"]) == ("DISENGAGED", "alpha", "DELETED")
    assert [(row["name"], row["state"], row["endpoint"]) for row in status["clusters"]] == [("alpha", "deleted", "")]


async def test_status_page_and_metrics_without_names_have_none(place: Place) -> None:
    place.sandbox.projects.create("alpha", ready=True)
    async with place.daemon(http_listen="127.0.0.1:0", http_names="nobody") as daemon:
        url = await page_of(daemon)
        async with DiscoveryClient(place.address) as client:
            watch = client.watch(names=["alpha"])
            await watch.synced()
            place.sandbox.projects.delete("alpha")
            await daemon.until_said('"disengaged"')
            for query in ("", "?json", "?json&q=alpha"):
                page = (await get(f"{url}/{query}")).decode()
                assert "alpha" not in page.replace("q=alpha", "").replace('value="alpha"', "")
            assert "alpha" not in (await get(f"{url}/metrics")).decode()
