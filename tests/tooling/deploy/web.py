"""One GET, without a client's opinions."""

import asyncio
import urllib.request


async def get(url: str) -> bytes:
    """Raises OSError, also for a status that isn't well."""

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    return await asyncio.to_thread(read)
