"""The screenshot of the status page in the docs is of the current page."""

from pathlib import Path

import pytest

from tests.end_to_end.process.conftest import directory
from tests.tooling.docs import screenshot

__all__ = ["directory"]


async def test_screenshot_shows_the_current_page(directory: Path) -> None:
    """If the page has changed, the test fails and renews the screenshot, where a browser is installed."""
    if screenshot.digest_of(screenshot.PICTURE) == screenshot.digest():
        return
    await screenshot.take(directory, screenshot.PICTURE)
    pytest.fail(f"the status page has changed: {screenshot.PICTURE.name} was taken again, commit it")


async def test_screenshot_of_the_status_page_can_be_taken(directory: Path) -> None:
    picture = directory / "page.png"
    await screenshot.take(directory, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert screenshot.digest_of(picture) == screenshot.digest()
