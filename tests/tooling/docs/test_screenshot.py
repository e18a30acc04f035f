"""The screenshot of the status page in the docs is of the current page."""

from pathlib import Path

import pytest

from tests.end_to_end.process.conftest import folder
from tests.tooling.docs import screenshot

__all__ = ["folder"]


async def test_screenshot_shows_the_current_page(folder: Path) -> None:
    """The test renews the screenshot if a browser is installed."""
    if screenshot.digest_of(screenshot.PICTURE) == screenshot.digest():
        return
    await screenshot.take(folder, screenshot.PICTURE)
    pytest.fail(f"the status page has changed: {screenshot.PICTURE.name} was taken again, commit it")


async def test_screenshot_of_the_sandbox_can_be_taken(folder: Path) -> None:
    picture = folder / "page.png"
    await screenshot.take(folder, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert screenshot.digest_of(picture) == screenshot.digest()
