"""A plain HTTP GET."""

import asyncio
import urllib.request


async def get(url: str) -> bytes:
    """Return the body; raise OSError for failed requests and for error statuses."""

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(read)
