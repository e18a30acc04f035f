"""The picture of the status page in the docs: taken in headless Chromium, with a digest of the code that renders it."""

import hashlib
import struct
import zlib
from pathlib import Path

from milo_sandbox import Sandbox
from tests.end_to_end.process.conftest import Workspace
from tests.support.browser import browsing, running

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "docs" / "images" / "status-page.png"
_SOURCES = ("status_page.html", "status_page.py")
_KEY = b"Source\0"
_END = 12
"""Size in bytes of a PNG's last chunk, IEND, which is empty."""


def digest() -> bytes:
    """Return a digest of the code that renders the page."""
    directory = ROOT / "milo_discoveryd" / "telemetry"
    return hashlib.sha256(b"".join((directory / name).read_bytes() for name in _SOURCES)).hexdigest().encode()


def digest_of(picture: Path) -> bytes:
    """Return the digest in a picture; empty if it has none."""
    _, _, rest = picture.read_bytes().partition(b"tEXt" + _KEY)
    return rest[:64]


async def take(directory: Path, picture: Path) -> None:
    """Take the screenshot of a daemon beside a sandbox with a few projects in several states."""
    async with Sandbox(seed=7) as sandbox:
        workspace = Workspace(directory, sandbox)
        sandbox.populate(8)
        sandbox.projects.create("brisk-orchard", ready=False, organization="fernweh")
        sandbox.projects.create("quiet-harbor", ready=True, organization="acme", finalizers=["example.com/cleanup"])
        sandbox.projects.create("amber-hollow", ready=True, organization="acme")
        own = {"name": "core", "type": "project-kubeconfig", "share_discovery_identity": True}
        settings = {
            "listen": [{"address": workspace.address, "peer_credentials": True}],
            "kubeconfigs": {"issuers": [own]},
        }
        async with workspace.daemon(http_listen="127.0.0.1:0", **settings) as daemon, workspace.client() as client:
            daemon.address = workspace.address
            await daemon.start()
            await daemon.wait_for_output('"synced"')
            await client.watch(include_kubeconfigs=True).synced()
            await client.watch(label_selector="env=prod").synced()
            sandbox.projects.create("velvet-canyon", ready=True, organization="fernweh")
            sandbox.projects.delete("amber-hollow")
            sandbox.projects.delete("quiet-harbor")
            await daemon.wait_for_output('"disengaged"')
            url = str(daemon.events("started")[-1]["http"])
            with running() as devtools:
                async with browsing(devtools) as browser:
                    await browser.resize(1280, 1000)
                    await browser.theme("light")
                    await browser.open(f"{url}/")
                    await browser.until("document.body.innerText.includes('DISENGAGED')")
                    await browser.screenshot(picture)
    picture.write_bytes(_with_text(picture.read_bytes(), digest()))


def _with_text(png: bytes, text: bytes) -> bytes:
    content = b"tEXt" + _KEY + text
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:-_END] + chunk + png[-_END:]
